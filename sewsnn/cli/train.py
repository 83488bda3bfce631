"""``sewsnn train CONFIG``."""

from sewsnn.progress import let_go_of_lost, tell

#: what a command with keys of the configuration should be given less of when memory runs out
LESS = "a smaller data.batch_size, data.image_size, model.T or network"


def add(commands) -> None:
    train = commands.add_parser(
        "train",
        help="train a network",
        description="Trains what CONFIG describes. Any key of the configuration can be set on the command line: "
        "--optimizer.lr 0.05, or --lr 0.05 where only one key ends so. A section may be set as a whole: "
        "--model.last_neuron null, --model.neuron '{type: LIF}'. The words may stand in any order.",
        allow_abbrev=False,
    )
    train.add_argument("config", metavar="CONFIG", help="YAML file, see configs/")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    train.add_argument("--resume=auto", action="store_true", dest="auto", help="if there is one (or --resume auto)")
    train.set_defaults(run=_train, overrides={}, less=LESS)


def _train(arguments) -> int:
    from sewsnn.train.config import load_config
    from sewsnn.train.loop import Interrupted, train

    config = load_config(arguments.config, arguments.overrides)
    try:
        train(config, "auto" if arguments.auto else arguments.resume)
    except Interrupted as stop:
        tell(f"sewsnn: {stop}; go on with --resume")
        return 130
    finally:
        let_go_of_lost()  # a run is no failure because of its log
    return 0
