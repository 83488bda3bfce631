"""Atomic writing of files, and reading of tensors without running code from the file."""

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

    FIFOs, terminals and devices are refused: opening a FIFO waits for a writer, and reading a device may never end.

    Args:
        path: the file.

    Returns:
        The binary file object.

    Raises:
        OSError: the file cannot be opened or is not a regular file; ``strerror`` says why.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a NUL, or a character that the file system cannot encode
        raise OSError(errno.EINVAL, f"this cannot be the name of a file: {error}", os.fspath(path)) from None
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
            raise OSError(errno.EINVAL, "it is a FIFO, socket or device; expected a regular file", os.fspath(path))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike) -> bytes:
    """Returns the bytes of a regular file. Raises OSError as :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def text_of(data: bytes) -> str:
    """Decodes UTF-8 text with or without a byte order mark. Raises UnicodeDecodeError."""
    return data.decode("utf-8-sig")


_LOADING = threading.Lock()  # the list of classes that torch may unpickle is global to the process
UNCHECKED = "has no checksums, so damage in it cannot be detected"


class _Watched:
    """A file that records why a write failed: torch.save reports a full disk with an error that does not say so."""

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
    """Writes a temporary file beside ``path``, flushes it to the disk and renames it. After a crash or on a full disk
    the old file is intact. If ``path`` is a link, the link stays and its target is replaced. The permissions follow the
    umask.

    Args:
        path: the file to write.
        write: called with a binary file object; writes the content.

    Raises:
        UserError: the file cannot be written, or something else has this name (a FIFO, a device, a folder); the message
            names it and the cause.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise UserError(f"cannot write {path}: {os.strerror(errno.ELOOP)}")
    check_replaceable(path)
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
        with contextlib.suppress(OSError):  # the temporary file was renamed or never created
            os.unlink(temporary)


def check_replaceable(path: Path) -> None:
    """Raises UserError if ``path`` exists and is not a regular file: renaming would replace it."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing exists there, or the write itself will report the error
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot write {path}: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {path}: it is a FIFO, socket or device, not a regular file")


def check_output(path: Path, begins: bytes) -> None:
    """Checks before long work that an output file can be written and would not replace a file of another type.

    Args:
        path: the file to write later.
        begins: the first bytes of files of the type that may be replaced.

    Raises:
        UserError: the folder does not exist or cannot be written to, or an existing file begins with other bytes.
    """
    check_replaceable(path)
    try:
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
            pass
        with open_regular(path) as file:
            found = file.read(len(begins))
    except FileNotFoundError:
        if not is_folder(Path(path).parent):
            raise UserError(f"cannot write {path}: the folder {Path(path).parent} does not exist") from None
        return
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if found and found != begins:
        raise UserError(f"cannot write {path}: a file of another type exists there; remove it or choose another name")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text with :func:`write_atomic`. Bytes of file names that are not UTF-8 (surrogate escapes) are
    written unchanged."""
    try:
        data = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that does not stand for a byte
        data = text.encode(errors="backslashreplace")
    write_atomic(path, lambda file: file.write(data))


class _Read(io.RawIOBase):
    """A file that records why a read failed: torch.load may report that with an error that does not say so."""

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
    """The result of :func:`read_tensors`.

    Attributes:
        content: the content of the file.
        note: a remark about the file for the user; usually empty.
    """

    content: Any
    note: str


def read_tensors(path: Path, allowed: Sequence[type] = ()) -> Tensors:
    """Reads a file of ``torch.save`` on the CPU with ``weights_only=True``: tensors, numbers, text and collections of
    them. Before that it compares all bytes with the checksums in the file.

    Args:
        path: the file.
        allowed: further classes whose objects the file may contain.

    Returns:
        :class:`Tensors`. ``note`` says so if the file has no checksums.

    Raises:
        DamagedError: the file is damaged, truncated or not written by ``torch.save``; the message names it.
        CheckpointError: the file is missing, cannot be read now, does not fit into memory, or holds a pickled object of
            another class. Such an object is not created and its code does not run. The message names the file and the
            class.
    """
    try:
        with open_regular(path) as file:
            return _read_tensors(file, path, allowed)
    except FileNotFoundError:
        if os.path.islink(path):
            raise CheckpointError(
                f"cannot read the checkpoint {path}: it is a link to a file that does not exist"
            ) from None
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with \0 in it
        raise cannot_read(f"the checkpoint {path}", error) from None


def cannot_read(what: str, error: OSError | ValueError, kind: type[UserError] = CheckpointError) -> UserError:
    """Returns the error for something that cannot be read now, damaged or not."""
    if isinstance(error, IsADirectoryError):
        return kind(f"cannot read {what}: {os.strerror(errno.EISDIR)}")
    return kind(f"cannot read {what}: {getattr(error, 'strerror', None) or error}")


def _read_tensors(file: BinaryIO, path: Path, allowed: Sequence[type]) -> Tensors:
    watched = _Read(file)
    reader = io.BufferedReader(watched)  # it has no file descriptor, so that torch reads through ``watched``
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
            raise CheckpointError(f"not enough memory to load the checkpoint {path}") from None
        if not is_archive and not reader.read(1):
            error = archive.Damage("the file ends too early")
        raise _refusal(path, error, is_archive) from None


def _refusal(path: Path, error: Exception, is_archive: bool) -> CheckpointError:
    """Returns the error that explains why a file has no usable content."""
    text = str(error)
    if isinstance(error, archive.Foreign):
        return CheckpointError(f"{path} is not a readable checkpoint (not written by torch.save): {text}")
    refused = re.search(r"GLOBAL ([\w.]+)", text)
    if refused:
        return CheckpointError(
            f"{path} holds a pickled {refused[1]} in addition to tensors; it is refused because loading could run code"
        )
    reason = text.splitlines()[0] if text else type(error).__name__
    if "weights_only" in reason:  # torch's message advises to run code from the file
        reason = "it is TorchScript, pickled with protocol 4 or later, or not a checkpoint at all"
    reason = reason.partition(". This is an internal miniz")[0]  # drops torch's guess at the cause
    structure = isinstance(error, archive.Damage) or "PytorchStreamReader" in reason
    if is_archive and not structure:  # its bytes match their checksums
        return CheckpointError(
            f"{path} is not a readable checkpoint (not written by torch.save, or edited by hand): {reason}"
        )
    return DamagedError(
        f"{path} is not a readable checkpoint (truncated, damaged, or not written by torch.save): {reason}"
    )


def save_tensors(path: Path, content: Any) -> None:
    """Writes ``content`` with ``torch.save`` and :func:`write_atomic`, always with checksums.

    Args:
        path: the file to write.
        content: tensors, numbers, text and collections of them.

    Raises:
        UserError: as in :func:`write_atomic`.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        write_atomic(path, lambda file: torch.save(content, file))
    finally:
        torch.serialization.set_crc32_options(before)


def exists(path: str | os.PathLike, kind: type[UserError] = UserError, follow: bool = False) -> bool:
    """Returns whether something with this name exists, a broken link included. ``Path.exists`` would also return False
    if the disk does not answer.

    Args:
        path: the name.
        kind: the error to raise (default :class:`UserError`).
        follow: ask about the target of a link instead (default False).

    Raises:
        UserError: this cannot be determined now (as ``kind``); the message names the path and the cause.
    """
    return _asked(str(path), lambda: bool(os.stat(path, follow_symlinks=follow)), False, kind)


def is_folder(path: str | os.PathLike, kind: type[UserError] = UserError) -> bool:
    """Returns whether a folder with this name exists.

    Args:
        path: the name.
        kind: the error to raise (default :class:`UserError`).

    Raises:
        UserError: this cannot be determined now (as ``kind``); the message names the path and the cause.
    """
    return _asked(str(path), lambda: stat.S_ISDIR(os.stat(path).st_mode), False, kind)


def names_in(folder: Path) -> list[str]:
    """Returns the names of the entries of a folder; an empty list if the folder does not exist.

    Raises:
        UserError: the folder cannot be read now; the message names it and the cause.
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
    """Creates a folder if needed and tests that it can be written to, so that the error does not come only after an
    epoch.

    Raises:
        UserError: the folder cannot be created or written to; the message names it and the cause.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise UserError(
            f"cannot write to the output folder {path}: it is a file, or a link that does not lead to a folder"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error.strerror}") from None
