"""``sewsnn train CONFIG``."""

import sys


def add(commands) -> None:
    train = commands.add_parser(
        "train",
        help="train a network",
        description="Trains what CONFIG describes. Any key of the configuration can be set on the command line: "
        "--optimizer.lr 0.05, or --lr 0.05 where only one key ends so.",
        allow_abbrev=False,
    )
    train.add_argument("config", metavar="CONFIG", help="YAML file, see configs/")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    train.add_argument("--resume=auto", action="store_true", dest="auto", help="if there is one (or --resume auto)")
    train.set_defaults(run=_train, overrides=None)


def _train(arguments) -> int:
    from sewsnn.train.config import load_config
    from sewsnn.train.loop import Interrupted, train

    config = load_config(arguments.config, arguments.overrides)
    try:
        train(config, "auto" if arguments.auto else arguments.resume)
    except Interrupted as stop:
        print(f"sewsnn: {stop}; go on with --resume", file=sys.stderr)
        return 130
    return 0
