"""The command line: :func:`main`. Each command has a file of its own here, which defines its arguments."""

import os
import sys

from sewsnn.cli import analyze, checkpoints, data, evaluate, export, info, models, train
from sewsnn.cli.words import Parser, parse_overrides
from sewsnn.errors import UserError, out_of_memory, short
from sewsnn.progress import let_go_of_lost, tell

__all__ = ["main", "parse_overrides"]

_COMMANDS = (train, evaluate, analyze, data, models, checkpoints, export, info)


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the words of the command line; None (default): ``sys.argv[1:]``.

    Returns:
        The exit code. Errors that the user can fix print one line on stderr and give 1; Ctrl-C gives 130.
    """
    words, arguments = sys.argv[1:] if argv is None else argv, None
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # printing a path that is not UTF-8 must not abort the command
        if getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors="backslashreplace")
    parser = Parser(
        prog="sewsnn",
        description="Train, evaluate, export and inspect spiking neural networks with fused kernels.",
        epilog="sewsnn COMMAND --help describes a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    try:
        if wrong := [word for word in words if "\0" in word]:
            raise UserError(f"command line: an argument must not contain a NUL character, got {short(wrong[0])}")
        arguments = parser.parse(words)
        code = arguments.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:  # its cause may be an error of a library that ran out of memory
        cause = error.__cause__ and out_of_memory(error.__cause__)
        return _no_memory(cause, arguments) if cause else _fail(error)
    except KeyboardInterrupt:
        tell("sewsnn: stopped")
        return 130
    except BrokenPipeError:  # the reader of the output has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, else Python complains at exit
        return 141
    except (OSError, RuntimeError, MemoryError) as error:
        if reason := out_of_memory(error):
            return _no_memory(reason, arguments)
        if isinstance(error, OSError) and error.errno is not None:  # an impossible path or a failing disk
            return _fail(f"{short(error.filename)}: {error.strerror}" if error.filename else error.strerror)
        raise  # a bug: show its traceback


def _fill_closed_streams() -> None:
    """Opens /dev/null for each closed standard stream. Otherwise the next file that is opened would get the number of a
    closed stream, and output of libraries would go into that file."""
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)


def _no_memory(reason: str, arguments) -> int:
    less = getattr(arguments, "less", "a smaller network")
    return _fail(f"out of memory ({reason}). To use less memory, choose {less}")


def _fail(error) -> int:
    tell(f"sewsnn: error: {error}")
    let_go_of_lost()
    return 1
