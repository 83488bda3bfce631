"""The command line: ``sewsnn train CONFIG``, ``models [NAME]``, ``convert-checkpoint IN OUT --to DIALECT`` ..."""

import argparse
import platform
import sys

from sewsnn.errors import ConfigError, UserError


def main(argv: list[str] | None = None) -> int:
    """Runs a command; errors a user can mend are one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="sewsnn", description="Spiking neural networks with fused kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train a network",
        description="Trains what CONFIG describes. Any key of the configuration can be set on the command line: "
        "--optimizer.lr 0.05, or --lr 0.05 where only one key ends so.",
        allow_abbrev=False,
    )
    train.add_argument("config", metavar="CONFIG", help="YAML file, see configs/")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    models = commands.add_parser("models", help="the networks and their sizes, or one of them layer by layer")
    models.add_argument("name", metavar="NAME", nargs="?")
    models.set_defaults(run=_models)
    _add_convert(commands)
    commands.add_parser("info", help="versions, backends and devices").set_defaults(run=_info)
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _train(arguments, rest) if arguments.command == "train" else arguments.run(arguments)
    except UserError as error:
        print(f"sewsnn: error: {error}", file=sys.stderr)
        return 1


def parse_overrides(rest: list[str]) -> dict[str, str]:
    """``["--a.b", "1", "--c=2"]`` as ``{"a.b": "1", "c": "2"}``."""
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"command line: expected --key value, got {word!r}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"command line: --{key} needs a value")
        overrides[key] = value
    return overrides


def _train(arguments, rest: list[str]) -> int:
    from sewsnn.train.config import load_config
    from sewsnn.train.loop import Interrupted, train

    config = load_config(arguments.config, parse_overrides(rest))
    try:
        train(config, arguments.resume)
    except Interrupted as stop:
        print(f"sewsnn: {stop}; go on with --resume", file=sys.stderr)
        return 130
    return 0


def _add_convert(commands) -> None:
    convert = commands.add_parser(
        "convert-checkpoint",
        help="write a checkpoint under the names of another program",
        description="Reads the weights in IN, of whatever dialect, and writes them to OUT in another: sewsnn, "
        "torchvision (also SpikingJelly's models), authors (the paper's code) or containers (the same under "
        "SpikingJelly >= 0.0.0.0.8).",
        allow_abbrev=False,
    )
    convert.add_argument("source", metavar="IN", help="the checkpoint to read")
    convert.add_argument("target", metavar="OUT", help="the file to write")
    convert.add_argument("--to", required=True, metavar="DIALECT", help="the dialect of OUT")
    convert.add_argument("--model", metavar="NAME", help="the network, such as sew_resnet18, if IN does not name it")
    convert.add_argument(
        "--container", default="model", metavar="KEY", help="OUT is {KEY: weights}; '': weights alone (default: model)"
    )
    convert.add_argument("--force", action="store_true", help="replace OUT if it is there")
    convert.set_defaults(run=_convert)


def _convert(arguments) -> int:
    from sewsnn.models import convert_checkpoint

    report = convert_checkpoint(
        arguments.source,
        arguments.target,
        arguments.to,
        model=arguments.model,
        container=arguments.container,
        force=arguments.force,
    )
    print(report)
    print(f"written to {arguments.target} in dialect {arguments.to!r}")
    return 0


def _models(arguments) -> int:
    from sewsnn.analysis.networks import networks_table, size_of, usual_steps

    name = arguments.name
    print(networks_table() if name is None else size_of(name, usual_steps(name)))
    return 0


def _info(_) -> int:
    import torch

    import sewsnn
    from sewsnn.ops.load import describe_backends

    print(f"sewsnn {sewsnn.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for name, description in describe_backends().items():
        print(f"backend {name}: {description}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            print(f"cuda:{i}: {torch.cuda.get_device_name(i)}")
    else:
        print("CUDA device: none")
    print(f"threads: {torch.get_num_threads()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
