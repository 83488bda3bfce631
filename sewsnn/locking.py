"""One process at a time writes into a folder: :class:`FolderLock`."""

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
_ENDING = 10.0  # seconds that what a killed process has started may take to notice it
_AGAIN = 0.1  # seconds between two looks
_TRIES = 100  # times that a lock file may vanish between opening and locking it


class FolderLock:
    """The right to write into a folder, from :meth:`acquire` to :meth:`release`; a context manager.

    The lock is the operating system's, on the file ``.lock`` in the folder: it ends with the process, however that
    ends, and processes that this one forks do not have it. Links to the folder lead to the same lock. On a network file
    system it holds between machines as far as the file system's locks do; where that has none at all, a warning says
    so, and nothing is locked: a refusal would keep its users from training at all, and a file that stands for the lock
    would stay when its process is killed.

    Args:
        folder: it is made if it is not there.
        use: what is done to it, for the message: ``"prepared"``.
    """

    def __init__(self, folder: Path, use: str):
        self.folder, self.use = folder, use
        self._handle: int | None = None
        self._path = Path(os.path.realpath(folder)) / NAME  # whatever the working directory is at the end
        self._made: list[Path] = []

    def acquire(self) -> "FolderLock":
        """Takes the lock, or refuses at once. Nothing happens where this object has it already.

        Raises:
            UserError: another process, or another object of this one, has it; or the folder cannot be written to.
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
            except FileNotFoundError:  # the folder went with another process's refusal
                continue
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise UserError(f"cannot write {self.folder / NAME}: {error.strerror or error}") from None
                warnings.warn(
                    f"the file system of {self.folder} has no locks: make sure that no other process writes there",
                    stacklevel=3,
                )
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
                return self
            finally:
                if handle is not None:
                    os.close(handle)
        raise UserError(f"cannot lock {self.folder}: other processes make and remove it all the time")

    def release(self, unused: bool = False) -> None:
        """Gives the lock back. ``unused``: nothing was written, so that folders made for it go, too."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _HELD.discard(self)
            with contextlib.suppress(OSError):  # while it is held: whoever has it open finds out that it is gone
                if _is_at(handle, self._path):
                    os.unlink(self._path)
            os.close(handle)
        if unused:
            with contextlib.suppress(OSError):  # of one that is not empty
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
        # Not a link's target, which may be anything; a FIFO is not waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(self._path, flags, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a FIFO, socket or device, a regular file was expected")

    def _lock(self, handle: int) -> None:
        end = time.monotonic() + _ENDING
        while not lock_descriptor(handle, blocking=False):
            holder = _holder(handle)
            # What a killed process has started may outlive it for a moment, with its files open.
            if not _has_ended(holder) or time.monotonic() >= end:
                raise UserError(self._refusal(holder))
            time.sleep(_AGAIN)

    def _sign(self, handle: int) -> None:
        with contextlib.suppress(OSError):  # of a full disk: only messages need it
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)

    def _refusal(self, holder: tuple[int, str] | None) -> str:
        who = f"another process (process {holder[0]} on {holder[1]})" if holder else "another process"
        if holder == (os.getpid(), socket.gethostname()):
            who = "this process already"
        return f"{self.folder} is being {self.use} by {who}: wait until it ends, or name another --output"


_HELD: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _forget() -> None:
    """In a process that was forked: an open handle would keep the lock after this process's parent was killed."""
    for lock in list(_HELD):
        os.close(lock._handle)
        lock._handle, lock._made = None, []
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)


def _missing(folder: Path) -> list[Path]:
    """The folders on the way to ``folder`` that are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _is_at(handle: int, path: Path) -> bool:
    """Whether ``path`` is the file that is open: another process may have removed that, and locked a new one."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise


def _holder(handle: int) -> tuple[int, str] | None:
    """The process that has the lock, if it has said so."""
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
