"""Errors a user can mend: the command line prints them without a traceback."""

import difflib
import errno
import re
import reprlib
from collections.abc import Iterable

_MOST = 80  # characters of a value in a message
_MOST_OF_A_LINE = 300  # characters of another program's message in ours

# What torch, numpy, Python and the C++ library say when memory ran out, or would have to.
_NO_MEMORY = re.compile(
    r"(DefaultCPUAllocator: |sewsnn )(can't allocate|not enough) memory.*|(CUDA|HIP)\b.*out of memory.*|"
    r".*_STATUS_ALLOC_FAILED.*|.*std::bad_alloc.*|Storage size calculation overflowed.*|"
    r".*integer multiplication overflow.*|Unable to allocate .*|(unable to )?mmap .*Cannot allocate memory.*",
)


class UserError(Exception):
    """A configuration, a file or a folder is not as it must be; the message names it and says what was expected."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class SettingError(UserError, ValueError):
    """An environment variable has a value that means nothing here; raised when sewsnn is imported."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or belongs to another run."""


class DamagedError(CheckpointError):
    """A checkpoint's own bytes prove that it is damaged: reading it again will not help, an older one may. Of no other
    error this is known: the disk may be gone, or the memory used up, and the checkpoint be whole."""


class DataError(UserError):
    """A data set's file is missing or is not what it should be; the message names it.

    Attributes:
        path: the file, where it is one.
    """

    def __init__(self, message: str, path: str | None = None):
        super().__init__(message)
        self.path = path


class UnreadableError(DataError):
    """A file cannot be read at all, now. It may be whole, and its disk gone: nobody may leave it out for good.

    Attributes:
        missing: the folder can be read, and there is no such file in it.
    """

    def __init__(self, message: str, path: str | None = None, missing: bool = False):
        super().__init__(message, path)
        self.missing = missing

    @classmethod
    def of(cls, path, error: OSError, what: str = "") -> "UnreadableError":
        """``cannot read [what] PATH: why``."""
        missing = isinstance(error, FileNotFoundError)
        return cls(f"cannot read {what}{path}: {error.strerror or error}", str(path), missing)


def is_of_the_disk(error: BaseException) -> bool:
    """Whether a file could not be read for now, rather than that its content makes no sense to a library: those raise
    OSError as well, without a number, or since they look for a place that no file has."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


class _Short(reprlib.Repr):
    def repr_int(self, x, level):
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python does not write integers of more than 4,300 digits
            return f"an integer of {x.bit_length():,} bits"


def short(value, most: int = _MOST) -> str:
    """``repr(value)`` for a message: one line of at most ``most`` characters, the middle replaced by ``...``.

    Only the first few entries of each collection are visited, and only a few levels: a value that refers to itself, or
    many times to the same one (nested YAML aliases), costs no more than a plain one.
    """
    brief = _Short()
    brief.maxlevel, brief.maxother, brief.maxstring, brief.maxlong = 3, most, most, most
    return one_line(brief.repr(value), most)


def one_line(text, most: int = _MOST_OF_A_LINE) -> str:
    """Text of another program (``str(error)``) for a message: one line of at most ``most`` characters, the middle
    replaced by ``...``."""
    text = " ".join(str(text).split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def by_nearness(name, known: Iterable[str]) -> list[str]:
    """The known names, those that are spelt most like ``name`` first."""
    name = str(name)[:_MOST].lower()

    def likeness(one: str) -> float:
        return difflib.SequenceMatcher(None, one.lower(), name, autojunk=False).ratio()

    return sorted(known, key=lambda one: (-likeness(one), one))


def unknown(what: str, name, known: Iterable[str]) -> str:
    """``unknown WHAT 'name' (nearest: ...); known: ...`` for a message, the nearest names first."""
    names = by_nearness(name, known)
    near = difflib.get_close_matches(str(name)[:_MOST], names, n=1)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return f"unknown {what} {short(name)}{hint}; known: {', '.join(names)}"


def out_of_memory(error: BaseException) -> str | None:
    """Why memory ran out, in one line, if that is what the error means: torch, numpy, Python and the operating system
    each have a kind of their own. None: it means something else, a bug perhaps, and must stay what it is."""
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror if error.errno == errno.ENOMEM else None
    if isinstance(error, RuntimeError | MemoryError):
        for line in text.splitlines():  # an error of a process that loads data comes with its traceback
            if found := _NO_MEMORY.search(line):
                return one_line(found[0])
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return one_line(text.splitlines()[0]) if text else "memory ran out"
    return None


def plain(value) -> str:
    """A name or a path of a file as it is, for a message; anything else, or a very long one, as by :func:`short`."""
    return value if isinstance(value, str) and len(value) <= _MOST_OF_A_LINE else short(value)
