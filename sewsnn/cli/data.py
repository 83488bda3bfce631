"""``sewsnn data prepare NAME --root ORIGINAL --output PREPARED``."""


def add(commands) -> None:
    data = commands.add_parser("data", help="prepare a data set's files for training")
    verbs = data.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser(
        "prepare",
        help="turn the original files into what training reads fastest",
        description="Reads the original files of a data set and writes what training reads fastest. It can be stopped "
        "at any moment and goes on when called again; until it is finished, training refuses the folder.",
        allow_abbrev=False,
    )
    prepare.add_argument("name", metavar="NAME", help="imagenet, dvs128_gesture or cifar10_dvs")
    prepare.add_argument("--root", required=True, metavar="FOLDER", help="the original files")
    prepare.add_argument("--output", required=True, metavar="FOLDER", help="where the prepared ones go")
    prepare.add_argument("--workers", type=int, default=0, metavar="N", help="processes; 0: one per processor")
    prepare.add_argument("--size", type=int, default=256, metavar="PIXELS", help="imagenet: of the shorter side")
    prepare.add_argument(
        "--on-corrupt", choices=("stop", "skip"), default="stop", help="a damaged file stops, or is left out and listed"
    )
    prepare.add_argument(
        "--per-shard", type=int, default=0, metavar="N", help="imagenet: write WebDataset shards of N images each"
    )
    prepare.set_defaults(run=_prepare)


def _prepare(arguments) -> int:
    from sewsnn.data.preparing import prepare

    report = prepare(
        arguments.name,
        arguments.root,
        arguments.output,
        workers=arguments.workers,
        size=arguments.size,
        on_corrupt=arguments.on_corrupt,
        per_shard=arguments.per_shard,
    )
    print(report)
    return 0
