"""One process at a time writes into a folder: :class:`FolderLock`."""

import contextlib
import errno
import os
import socket
import time
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from sewsnn.errors import UserError
from sewsnn.files import make_folder

NAME = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_ENDING = 10.0  # seconds that the workers of a process that was killed may take to notice it
_AGAIN = 0.1  # seconds between two looks


class FolderLock:
    """The right to write into a folder, from :meth:`acquire` to :meth:`release`; a context manager.

    The lock is the operating system's, on the file ``.lock`` in the folder: it ends with the process, however that
    ends. Links to the folder lead to the same lock. On a network file system it holds between machines as far as the
    file system's locks do; where that has none at all, a warning says so, and nothing is locked.

    Args:
        folder: it is made if it is not there.
        use: what is done to it, for the message: ``"prepared"``.
    """

    def __init__(self, folder: Path, use: str):
        self.folder, self.use = folder, use
        self._lock: FileLock | None = None
        self._made: list[Path] = []

    def acquire(self) -> "FolderLock":
        """Takes the lock, or refuses at once.

        Raises:
            UserError: another process, or another object of this one, has it; or the folder cannot be written to.
        """
        real = Path(os.path.realpath(self.folder))
        self._made = _missing(real)
        make_folder(self.folder)
        path, end = real / NAME, None
        while True:
            holder = _holder(path)
            lock = FileLock(path, timeout=0)
            try:
                lock.acquire()
                break
            except Timeout:
                # Processes that load its data may outlive a killed one for a moment, and have its files open.
                end = end or time.monotonic() + (_ENDING if _has_ended(holder) else 0)
                if time.monotonic() >= end:
                    raise UserError(self._refusal(holder)) from None
                time.sleep(_AGAIN)
            except (OSError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                    raise UserError(f"cannot write {self.folder / NAME}: {error.strerror or error}") from None
                warnings.warn(
                    f"the file system of {self.folder} has no locks: make sure that no other process writes there",
                    stacklevel=3,
                )
                return self
        self._lock = lock
        with contextlib.suppress(OSError):
            if os.path.getsize(path) == 0:  # else what filelock has written
                path.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        return self

    def release(self, unused: bool = False) -> None:
        """Gives the lock back. ``unused``: nothing was written, so that folders made for it go, too."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)  # while it is held: whoever has it open sees that it is gone
            lock.release(force=True)
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

    def _refusal(self, holder: tuple[int, str] | None) -> str:
        who = f" (process {holder[0]} on {holder[1]})" if holder else ""
        return (
            f"{self.folder} is being {self.use} by another process{who}: wait until it ends, or name another --output"
        )


def _missing(folder: Path) -> list[Path]:
    """The folders on the way to ``folder`` that are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _holder(path: Path) -> tuple[int, str] | None:
    """The process that has the lock, if it has said so."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = path.read_text(encoding="utf-8").split()
        return int(pid), host
    return None


def _has_ended(holder: tuple[int, str] | None) -> bool:
    if holder is None or holder[1] != socket.gethostname():
        return False
    try:
        os.kill(holder[0], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
