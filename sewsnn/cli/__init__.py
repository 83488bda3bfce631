"""The command line: :func:`main`. Each command is a file of its own here, with its arguments."""

import os
import sys

from sewsnn.cli import checkpoints, data, evaluate, export, info, models, train
from sewsnn.cli.words import Parser, parse_overrides
from sewsnn.errors import UserError, out_of_memory, short
from sewsnn.progress import let_go_of_lost, tell

__all__ = ["main", "parse_overrides"]

_COMMANDS = (train, evaluate, data, models, checkpoints, export, info)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; errors a user can mend are one line on stderr and exit code 1."""
    words, arguments = sys.argv[1:] if argv is None else argv, None
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # a path need not be UTF-8, and must not end what is nearly done
        if getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors="backslashreplace")
    parser = Parser(prog="sewsnn", description="Spiking neural networks with fused kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add(commands)
    try:
        if wrong := [word for word in words if "\0" in word]:
            raise UserError(f"command line: a word must not have a NUL character, got {short(wrong[0])}")
        arguments = parser.parse(words)
        code = arguments.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:  # what a library raised may have been memory that ran out
        cause = error.__cause__ and out_of_memory(error.__cause__)
        return _no_memory(cause, arguments) if cause else _fail(error)
    except KeyboardInterrupt:
        tell("sewsnn: stopped")
        return 130
    except BrokenPipeError:  # the reader of the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, else Python complains at exit
        return 141
    except (OSError, RuntimeError, MemoryError) as error:
        if reason := out_of_memory(error):
            return _no_memory(reason, arguments)
        if isinstance(error, OSError) and error.errno is not None:  # a path that cannot be, a disk that fails
            return _fail(f"{short(error.filename)}: {error.strerror}" if error.filename else error.strerror)
        raise  # a bug must be seen


def _fill_closed_streams() -> None:
    """A file that is opened next would get the number of a closed stdin, stdout or stderr, and what libraries write
    there would go into it."""
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)


def _no_memory(reason: str, arguments) -> int:
    less = getattr(arguments, "less", "a smaller network")
    return _fail(f"too little memory ({reason}); less is needed with {less}")


def _fail(error) -> int:
    tell(f"sewsnn: error: {error}")
    let_go_of_lost()
    return 1
