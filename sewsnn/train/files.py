"""Files that are either whole or as they were before."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sewsnn.errors import UserError


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes beside ``path``, flushes to the disk, renames: a crash or a full disk leaves the old file.

    Raises:
        UserError: the file cannot be written; names it and says why.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in a RuntimeError
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """:func:`write_atomic` of UTF-8 text."""
    write_atomic(path, lambda file: file.write(text.encode()))


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
