"""The command line: :func:`main`. Each command is a file of its own here, with its arguments."""

import argparse
import os
import sys

from sewsnn.cli import checkpoints, data, evaluate, export, info, models, train
from sewsnn.cli.words import join_auto, parse_overrides
from sewsnn.errors import UserError

__all__ = ["main", "parse_overrides"]

_COMMANDS = (train, evaluate, data, models, checkpoints, export, info)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; errors a user can mend are one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="sewsnn", description="Spiking neural networks with fused kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add(commands)
    arguments, rest = parser.parse_known_args(join_auto(sys.argv[1:] if argv is None else argv))
    if rest and not hasattr(arguments, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if hasattr(arguments, "overrides"):  # keys of the configuration
            arguments.overrides = parse_overrides(rest)
        return arguments.run(arguments)
    except UserError as error:
        print(f"sewsnn: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sewsnn: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, else Python complains at exit
        return 141
