"""Files that are either whole or as they were before, and reading tensors without running what else is in a file."""

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sewsnn.archive import find_damage, is_archive
from sewsnn.errors import CheckpointError, DamagedError, UserError, out_of_memory


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading bytes.

    Opening a FIFO waits for a writer, reading a terminal or a device may never end: neither is opened.

    Raises:
        OSError: it cannot be opened, or is not a regular file (``strerror`` says so).
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a NUL, or what no file system's encoding has
        raise OSError(errno.EINVAL, f"it cannot be a file's name: {error}", os.fspath(path)) from None
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
            raise OSError(errno.EINVAL, "it is a FIFO, socket or device, a regular file was expected", os.fspath(path))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike) -> bytes:
    """The bytes of a regular file; raises OSError as :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def text_of(data: bytes) -> str:
    """UTF-8 text, with or without a byte order mark. Raises UnicodeDecodeError."""
    return data.decode("utf-8-sig")


class _Watched:
    """A file that remembers why a write failed: torch.save turns a full disk into an error that does not say so."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name):
        return getattr(self._file, name)


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes beside ``path``, flushes to the disk, renames: a crash or a full disk leaves the old file. A link stays a
    link, to the new file; who may read it is as of any file made here, by the umask.

    Raises:
        UserError: the file cannot be written; names it and says why.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise UserError(f"cannot write {path}: {os.strerror(errno.ELOOP)}")
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    watched = None
    try:
        with open(temporary, "xb") as file:
            watched = _Watched(file)
            write(watched)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else watched and watched.error
        raise UserError(f"cannot write {path}: {(cause and cause.strerror) or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is not there: renamed, or never made
            os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """:func:`write_atomic` of UTF-8 text."""
    write_atomic(path, lambda file: file.write(text.encode()))


class _Reader:
    """A file that remembers why it could not be read: torch.load gives such an error another class."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def _remember(self, read, *arguments):
        try:
            return read(*arguments)
        except OSError as error:
            self.error = error
            raise

    def read(self, *size):
        return self._remember(self._file.read, *size)

    def readinto(self, buffer):
        return self._remember(self._file.readinto, buffer)

    def readline(self, *size):
        return self._remember(self._file.readline, *size)

    def __getattr__(self, name):
        return getattr(self._file, name)


def is_there(path: Path) -> bool:
    """Whether there is something of this name, be it a link to nothing. ``Path.exists`` takes some errors of the disk
    for a no, and a run would begin anew over what it cannot see.

    Raises:
        UserError: the folder cannot be read; names it and says why.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return True


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it is not there. ``Path.glob`` takes a folder that cannot be read for an
    empty one.

    Raises:
        UserError: the folder cannot be read; names it and says why.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the folder {folder}: {getattr(error, 'strerror', None) or error}") from None


def load_tensors(path: Path, allowed: Sequence[type] = ()) -> Any:
    """``torch.load`` on the CPU of tensors, numbers, text and collections of them (``weights_only=True``), after each
    record was compared with its CRC-32.

    Files that torch wrote before 1.6 (or by ``_use_new_zipfile_serialization=False``), or without checksums
    (``torch.serialization.set_crc32_options(False)``), have nothing to compare: only what does not parse is noticed.

    Args:
        allowed: classes whose objects may be in the file besides.

    Raises:
        DamagedError: the file is truncated or damaged.
        CheckpointError: the file is missing, cannot be read for the moment, or holds a pickled object of another class
            (which was not made, nor its code run); names both.
        MemoryError, RuntimeError: there is too little memory.
    """
    name = str(path)
    try:
        with open_regular(path) as file:
            reader = _Reader(file)
            try:
                return _load_tensors(reader, name, allowed)
            except CheckpointError:
                if reader.error is not None:
                    raise reader.error from None
                raise
    except FileNotFoundError:
        link = f": {name} is a link to a file that is not there" if os.path.islink(path) else ""
        raise CheckpointError(f"there is no checkpoint {name}{link}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {name}: {error.strerror or error}") from None


def _load_tensors(file: BinaryIO, name: str, allowed: Sequence[type]) -> Any:
    if is_archive(file) and (damage := find_damage(file)):
        raise DamagedError(f"{name} is not a readable checkpoint (truncated or damaged): {damage}")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file, OSError too
        if out_of_memory(error):  # the file may be whole
            raise
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{name} holds more than tensors: a pickled {refused[1]}, which is refused, since loading it could run "
                "code"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in reason:  # torch's advice is to run the file
            reason = "refused, since it is TorchScript, pickled with protocol 4 or later, or no checkpoint at all"
        raise DamagedError(
            f"{name} is not a readable checkpoint (truncated, damaged, or not written by torch.save): {reason}"
        ) from None


def make_folder(path: Path) -> None:
    """Makes a folder, and finds out now rather than after an epoch whether it can be written to.

    Raises:
        UserError: it cannot; names it and says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error.strerror}") from None
