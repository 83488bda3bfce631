"""A lock on a folder, so that only one process writes into it: :class:`FolderLock`."""

import contextlib
import errno
import os
import socket
import stat
import time
import warnings
import weakref
from pathlib import Path

from filelock import lock_descriptor

from sewsnn.errors import UserError
from sewsnn.files import make_folder

NAME = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_ENDING = 10.0  # seconds that child processes of a killed process may take to exit
_AGAIN = 0.1  # seconds between two attempts
_TRIES = 100  # limit of attempts when the lock file vanishes between opening and locking it


class FolderLock:
    """The exclusive right to write into a folder, from :meth:`acquire` to :meth:`release`. It is a context manager.

    It is a lock of the operating system on the file ``.lock`` in the folder. It ends when the process ends in any way,
    and forked processes do not inherit it. Links to the folder lead to the same lock. On a network file system it works
    between machines as far as the locks of the file system do. If the file system has no locks, a warning says so and
    nothing is locked: an error would prevent training altogether, and a lock file instead would remain when its process
    is killed.

    Args:
        folder: the folder; it is created if needed.
        use: what the process does with the folder, for messages, such as ``"prepared"``.
    """

    def __init__(self, folder: Path, use: str):
        self.folder, self.use = folder, use
        self._handle: int | None = None
        self._path = Path(os.path.realpath(folder)) / NAME  # absolute, since the working directory may change
        self._made: list[Path] = []

    def acquire(self) -> "FolderLock":
        """Takes the lock or raises at once. Does nothing if this object already holds it.

        Raises:
            UserError: another process, or another object of this process, holds the lock, or the folder cannot be
                written to.
        """
        if self._handle is not None:
            return self
        self._made = _missing(self._path.parent)
        for _ in range(_TRIES):
            make_folder(self.folder)
            handle = None
            try:
                handle = self._open()
                self._lock(handle)
                if _is_at(handle, self._path):
                    self._sign(handle)
                    self._handle, handle = handle, None
                    _HELD.add(self)
                    return self
            except FileNotFoundError:  # another process that gave up removed the folder
                continue
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise UserError(f"cannot write {self.folder / NAME}: {error.strerror or error}") from None
                warnings.warn(
                    f"the file system of {self.folder} has no locks; make sure that no other process writes there",
                    stacklevel=3,
                )
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
                return self
            finally:
                if handle is not None:
                    os.close(handle)
        raise UserError(f"cannot lock {self.folder}: other processes keep creating and removing it")

    def release(self, unused: bool = False) -> None:
        """Releases the lock. ``unused=True``: nothing was written, so the folders that :meth:`acquire` created are
        removed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _HELD.discard(self)
            with contextlib.suppress(
                OSError
            ):  # while the lock is held: a process that has the file open notices that it is gone
                if _is_at(handle, self._path):
                    os.unlink(self._path)
            os.close(handle)
        if unused:
            with contextlib.suppress(OSError):  # a folder that is not empty
                for folder in self._made:
                    folder.rmdir()
        self._made = []

    def __enter__(self) -> "FolderLock":
        return self.acquire()

    def __exit__(self, kind, error, traceback) -> None:
        self.release(unused=error is not None)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {error.filename or self.folder}: {error.strerror or error}") from None

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.release()

    def _open(self) -> int:
        # Do not follow a link, whose target may be anything, and do not wait for a FIFO.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(self._path, flags, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a FIFO, socket or device; expected a regular file")

    def _lock(self, handle: int) -> None:
        end = time.monotonic() + _ENDING
        while not lock_descriptor(handle, blocking=False):
            holder = _holder(handle)
            # Child processes of a killed process may live a moment longer and keep the lock file open.
            if not _has_ended(holder) or time.monotonic() >= end:
                raise UserError(self._refusal(holder))
            time.sleep(_AGAIN)

    def _sign(self, handle: int) -> None:
        with contextlib.suppress(OSError):  # the disk is full; only messages use this text
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)

    def _refusal(self, holder: tuple[int, str] | None) -> str:
        who = f"another process (process {holder[0]} on {holder[1]})" if holder else "another process"
        if holder == (os.getpid(), socket.gethostname()):
            who = "this process itself"
        return f"{self.folder} is being {self.use} by {who}; wait until it ends or choose another --output"


_HELD: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _forget() -> None:
    """Closes the lock files in a forked process: an open one would keep the lock after the parent was killed."""
    for lock in list(_HELD):
        os.close(lock._handle)
        lock._handle, lock._made = None, []
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)


def _missing(folder: Path) -> list[Path]:
    """Returns ``folder`` and its parents that do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _is_at(handle: int, path: Path) -> bool:
    """Returns whether ``path`` is still the open file: another process may have removed it and locked a new one."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise


def _holder(handle: int) -> tuple[int, str] | None:
    """Returns the process and the machine that hold the lock, if the lock file names them."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = os.pread(handle, 300, 0).decode().split()
        return int(pid), host
    return None


def _has_ended(holder: tuple[int, str] | None) -> bool:
    if holder is None or holder[1] != socket.gethostname():
        return False
    try:
        os.kill(holder[0], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False
