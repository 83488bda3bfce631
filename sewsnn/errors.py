"""Errors a user can mend: the command line prints them without a traceback."""

import errno
import re
import reprlib

_MOST = 80  # characters of a value in a message
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|[Uu]nable to allocate|std::bad_alloc")


class UserError(Exception):
    """A configuration, a file or a folder is not as it must be; the message names it and says what was expected."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


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
    """A file cannot be read at all, now. It may be whole, and its disk gone: nobody may leave it out for good."""


def is_of_the_disk(error: BaseException) -> bool:
    """Whether a file could not be read for now, rather than that its content makes no sense to a library: those raise
    OSError as well, without a number, or since they look for a place that no file has."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch had too little of the CPU's memory."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


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
    text = brief.repr(value)
    text = " ".join(text.split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"
