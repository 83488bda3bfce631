"""Files that are either whole or as they were before, and reading tensors without running what else is in a file."""

import contextlib
import errno
import io
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from sewsnn import archive
from sewsnn.errors import CheckpointError, DamagedError, UserError, is_of_the_disk, out_of_memory


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


_LOADING = threading.Lock()  # what torch may unpickle holds for the whole process
UNCHECKED = "carries no checksums: damage in it cannot be seen"


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
        UserError: the file cannot be written, or there is something else of that name (a FIFO, a device, a folder);
            names it and says why.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise UserError(f"cannot write {path}: {os.strerror(errno.ELOOP)}")
    _check_replaceable(path)
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


def _check_replaceable(path: Path) -> None:
    """Raises UserError where renaming would put a file in the place of what is none."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing is there; what cannot be known, the writing will say
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot write {path}: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {path}: it is a FIFO, socket or device, no regular file")


def check_output(path: Path, begins: bytes) -> None:
    """What would fail or do harm after long work: a file that cannot be written, or another kind of file there.

    Args:
        begins: the first bytes of a file of the kind, which may be replaced.

    Raises:
        UserError: the folder is not there or cannot be written to, or what is there does not begin so.
    """
    _check_replaceable(path)
    try:
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
            pass
        with open_regular(path) as file:
            found = file.read(len(begins))
    except FileNotFoundError:
        if not is_folder(Path(path).parent):
            raise UserError(f"cannot write {path}: there is no folder {Path(path).parent}") from None
        return
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if found and found != begins:
        raise UserError(f"cannot write {path}: a file of another kind is there; remove it, or choose another name")


def write_text(path: Path, text: str) -> None:
    """:func:`write_atomic` of UTF-8 text. A file's name in it that is not UTF-8 gets its own bytes."""
    try:
        data = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which is no name's byte
        data = text.encode(errors="backslashreplace")
    write_atomic(path, lambda file: file.write(data))


class _Read(io.RawIOBase):
    """A file that remembers why a read failed: torch.load may turn that into an error that does not say so."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def readinto(self, block) -> int:
        try:
            return self._file.readinto(block)
        except OSError as error:
            self.error = error
            raise

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Tensors(NamedTuple):
    """What :func:`read_tensors` returns."""

    content: Any
    note: str  #: what should be known of the file; mostly nothing


def read_tensors(path: Path, allowed: Sequence[type] = ()) -> Tensors:
    """``torch.load`` on the CPU of tensors, numbers, text and collections of them (``weights_only=True``), once the
    bytes have been compared with the checksums they were written with.

    Args:
        allowed: classes whose objects may be in the file besides.

    Raises:
        DamagedError: the file is damaged, truncated or none of ``torch.save``; named.
        CheckpointError: the file is missing, cannot be read now, is too large for the memory, or holds a pickled
            object of another class (which was not made, nor its code run); names both.
    """
    try:
        with open_regular(path) as file:
            return _read_tensors(file, path, allowed)
    except FileNotFoundError:
        if os.path.islink(path):
            raise CheckpointError(f"cannot read the checkpoint {path}: it is a link to what is not there") from None
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with \0 in it
        raise cannot_read(f"the checkpoint {path}", error) from None


def cannot_read(what: str, error: OSError | ValueError, kind: type[UserError] = CheckpointError) -> UserError:
    """The error of something that cannot be read now, whether it is damaged or not."""
    if isinstance(error, IsADirectoryError):
        return kind(f"cannot read {what}: {os.strerror(errno.EISDIR)}")
    return kind(f"cannot read {what}: {getattr(error, 'strerror', None) or error}")


def _read_tensors(file: BinaryIO, path: Path, allowed: Sequence[type]) -> Tensors:
    watched = _Read(file)
    reader = io.BufferedReader(watched)  # without a descriptor: torch would read past the watching
    is_archive = False
    try:
        is_archive = archive.is_archive(reader)
        checked = is_archive and archive.check_records(reader)
        reader.seek(0)
        with _LOADING, torch.serialization.safe_globals(list(allowed)):
            content = torch.load(reader, map_location="cpu", weights_only=True, mmap=False)
        return Tensors(content, "" if checked else f"{path} {UNCHECKED}")
    except Exception as error:  # torch.load raises many kinds
        if watched.error is not None or is_of_the_disk(error):
            raise watched.error or error from None
        if out_of_memory(error):
            raise CheckpointError(f"too little memory to load the checkpoint {path}") from None
        if not is_archive and not reader.read(1):
            error = archive.Damage("it ends too early")
        raise _refusal(path, error, is_archive) from None


def _refusal(path: Path, error: Exception, is_archive: bool) -> CheckpointError:
    """Why there is no content."""
    text = str(error)
    if isinstance(error, archive.Foreign):
        return CheckpointError(f"{path} is not a readable checkpoint (not of torch.save): refused, since {text}")
    refused = re.search(r"GLOBAL ([\w.]+)", text)
    if refused:
        return CheckpointError(
            f"{path} holds more than tensors: a pickled {refused[1]}, which is refused, since loading it could run code"
        )
    reason = text.splitlines()[0] if text else type(error).__name__
    if "weights_only" in reason:  # torch's advice is to run the file
        reason = "refused, since it is TorchScript, pickled with protocol 4 or later, or no checkpoint at all"
    reason = reason.partition(". This is an internal miniz")[0]  # torch's guess at what we know
    structure = isinstance(error, archive.Damage) or "PytorchStreamReader" in reason
    if is_archive and not structure:  # its bytes are as they were written
        return CheckpointError(f"{path} is not a readable checkpoint (not of torch.save, or made by hand): {reason}")
    return DamagedError(
        f"{path} is not a readable checkpoint (truncated, damaged, or not written by torch.save): {reason}"
    )


def save_tensors(path: Path, content: Any) -> None:
    """``torch.save``, with checksums whatever this process has set, as :func:`write_atomic`.

    Raises:
        UserError: as there.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        write_atomic(path, lambda file: torch.save(content, file))
    finally:
        torch.serialization.set_crc32_options(before)


def exists(path: str | os.PathLike, kind: type[UserError] = UserError, follow: bool = False) -> bool:
    """Whether there is something of that name, be it a link to nothing; ``follow``: whether there is what it links to.
    ``Path.exists`` takes a disk that does not answer for nothing.

    Raises:
        UserError: it cannot be known now (as ``kind``); names it and says why.
    """
    return _asked(str(path), lambda: bool(os.stat(path, follow_symlinks=follow)), False, kind)


def is_folder(path: str | os.PathLike, kind: type[UserError] = UserError) -> bool:
    """Whether there is a folder of that name.

    Raises:
        UserError: it cannot be known now (as ``kind``); names it and says why.
    """
    return _asked(str(path), lambda: stat.S_ISDIR(os.stat(path).st_mode), False, kind)


def names_in(folder: Path) -> list[str]:
    """The names of what is in a folder; none of a folder that is not there.

    Raises:
        UserError: the folder cannot be read now; names it and says why.
    """
    return _asked(f"the folder {folder}", lambda: os.listdir(folder), [], UserError)


def _asked(what: str, ask: Callable[[], Any], nothing: Any, kind: type[UserError]) -> Any:
    try:
        return ask()
    except (FileNotFoundError, NotADirectoryError):
        return nothing
    except (OSError, ValueError) as error:  # ValueError: a path with \0 in it
        raise cannot_read(what, error, kind) from None


def make_folder(path: Path) -> None:
    """Makes a folder, and finds out now rather than after an epoch whether it can be written to.

    Raises:
        UserError: it cannot; names it and says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise UserError(
            f"cannot write to the output folder {path}: it is no folder, but a file or a link that leads to none"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error.strerror}") from None
