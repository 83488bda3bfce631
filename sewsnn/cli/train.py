"""``sewsnn train CONFIG``."""

from sewsnn.progress import let_go_of_lost, tell

#: the advice for commands with configuration keys when memory runs out
LESS = "a smaller data.batch_size, data.image_size, model.T or network"


def add(commands) -> None:
    train = commands.add_parser(
        "train",
        help="train a network",
        description="Trains the network that CONFIG describes. You can set any configuration key on the command line: "
        "--optimizer.lr 0.05, or --lr 0.05 if no other key ends in lr. You can also set a whole section: "
        "--model.last_neuron null, --model.neuron '{type: LIF}'. The arguments may come in any order.",
        allow_abbrev=False,
    )
    train.add_argument("config", metavar="CONFIG", help="YAML file, such as those in configs/")
    train.add_argument("--resume", action="store_true", help="continue from the checkpoint in the output folder")
    train.add_argument(
        "--resume=auto",
        action="store_true",
        dest="auto",
        help="continue if there is a checkpoint, else start a new run; also --resume auto",
    )
    train.set_defaults(run=_train, overrides={}, less=LESS)


def _train(arguments) -> int:
    from sewsnn.train.config import load_config
    from sewsnn.train.loop import Interrupted, train

    config = load_config(arguments.config, arguments.overrides)
    try:
        train(config, "auto" if arguments.auto else arguments.resume)
    except Interrupted as stop:
        tell(f"sewsnn: {stop}; continue with --resume")
        return 130
    finally:
        let_go_of_lost()  # a log that cannot be written does not make the run fail
    return 0
