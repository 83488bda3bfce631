"""Errors a user can mend: the command line prints them without a traceback."""

import reprlib

_MOST = 80  # characters of a value in a message


class UserError(Exception):
    """A configuration, a file or a folder is not as it must be; the message names it and says what was expected."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class SettingError(UserError, ValueError):
    """An environment variable has a value that means nothing here; raised when sewsnn is imported."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or belongs to another run."""


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
