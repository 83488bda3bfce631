"""Errors a user can mend: the command line prints them without a traceback."""


class UserError(Exception):
    """A configuration, a file or a folder is not as it must be; the message names it and says what was expected."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


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
