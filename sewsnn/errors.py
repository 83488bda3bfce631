"""Errors that a user can correct. The command line prints them without a traceback."""

import difflib
import errno
import re
import reprlib
from collections.abc import Iterable

_MOST = 80  # characters of a value in a message
_MOST_OF_A_LINE = 300  # characters of another program's message in ours

# Messages of torch, numpy, Python and the C++ library for too little memory, or for a size that no memory can hold.
_NO_MEMORY = re.compile(
    r"(DefaultCPUAllocator: |sewsnn )(can't allocate|not enough) memory.*|(CUDA|HIP)\b.*out of memory.*|"
    r".*_STATUS_ALLOC_FAILED.*|.*std::bad_alloc.*|Storage size calculation overflowed.*|"
    r".*integer multiplication overflow.*|Unable to allocate .*|(unable to )?mmap .*Cannot allocate memory.*",
)


class UserError(Exception):
    """A configuration, a file or a folder is wrong; the message names it and says what was expected."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class SettingError(UserError, ValueError):
    """An environment variable has an invalid value; ``import sewsnn`` raises it."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or it belongs to another run."""


class DamagedError(CheckpointError):
    """A checkpoint is damaged, and its own bytes prove it: reading it again does not help, but an older checkpoint may.

    No other error proves damage: the disk may be gone or the memory used up while the checkpoint is intact.
    """


class DataError(UserError):
    """A file of a data set is missing or has the wrong content; the message names it.

    Args:
        message: the text of the error.
        path: the file, if the error is about one file. Default None.

    Attributes:
        path: the file, or None.
    """

    def __init__(self, message: str, path: str | None = None):
        super().__init__(message)
        self.path = path


class UnreadableError(DataError):
    """A file cannot be read now. It may be intact and its disk gone, so no program may drop it from the data set for
    good.

    Args:
        message: the text of the error.
        path: the file. Default None.
        missing: the folder can be read, but it does not contain the file. Default False.

    Attributes:
        path: the file, or None.
        missing: whether the folder can be read and does not contain the file.
    """

    def __init__(self, message: str, path: str | None = None, missing: bool = False):
        super().__init__(message, path)
        self.missing = missing

    @classmethod
    def of(cls, path, error: OSError, what: str = "") -> "UnreadableError":
        """The error with the message ``cannot read [what] PATH: reason``.

        Args:
            path: the file.
            error: the operating system's error.
            what: words before the path. Default: none.
        """
        missing = isinstance(error, FileNotFoundError)
        return cls(f"cannot read {what}{path}: {error.strerror or error}", str(path), missing)


def is_of_the_disk(error: BaseException) -> bool:
    """Returns whether an error means that a file cannot be read now, not that a library rejects its content.

    Libraries raise OSError for bad content as well, but without an error number, or with EINVAL when they seek to a
    position that no file has.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


class _Short(reprlib.Repr):
    def repr_int(self, x, level):
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python does not write integers of more than 4,300 digits
            return f"an integer of {x.bit_length():,} bits"


def short(value, most: int = _MOST) -> str:
    """``repr(value)`` for a message: one line of at most ``most`` characters, with ``...`` in place of the middle.

    It visits only the first few entries of each collection and only a few levels. A value that refers to itself, or
    many times to the same object (nested YAML aliases), therefore costs no more than a plain value.
    """
    brief = _Short()
    brief.maxlevel, brief.maxother, brief.maxstring, brief.maxlong = 3, most, most, most
    return one_line(brief.repr(value), most)


def one_line(text, most: int = _MOST_OF_A_LINE) -> str:
    """The text of another program (``str(error)``) for a message: one line of at most ``most`` characters, with ``...``
    in place of the middle.
    """
    text = " ".join(str(text).split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def by_nearness(name, known: Iterable[str]) -> list[str]:
    """The known names, sorted by similarity to ``name``, the most similar first."""
    name = str(name)[:_MOST].lower()

    def likeness(one: str) -> float:
        return difflib.SequenceMatcher(None, one.lower(), name, autojunk=False).ratio()

    return sorted(known, key=lambda one: (-likeness(one), one))


def unknown(what: str, name, known: Iterable[str]) -> str:
    """``unknown WHAT 'name' (nearest: ...); known: ...`` for a message, with the nearest names first."""
    names = by_nearness(name, known)
    near = difflib.get_close_matches(str(name)[:_MOST], names, n=1)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return f"unknown {what} {short(name)}{hint}; known: {', '.join(names)}"


def out_of_memory(error: BaseException) -> str | None:
    """The reason in one line if the error means that memory ran out, else None.

    torch, numpy, Python and the operating system each raise an error of their own for that. The caller must not replace
    an error for which this returns None: it may be a bug.
    """
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror if error.errno == errno.ENOMEM else None
    if isinstance(error, RuntimeError | MemoryError):
        for line in text.splitlines():  # the error of a data loading process contains its traceback
            if found := _NO_MEMORY.search(line):
                return one_line(found[0])
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; torch is not imported
        return one_line(text.splitlines()[0]) if text else "memory ran out"
    return None


def plain(value) -> str:
    """A name or a path for a message: unchanged, or by :func:`short` if it is very long or not a string."""
    return value if isinstance(value, str) and len(value) <= _MOST_OF_A_LINE else short(value)
