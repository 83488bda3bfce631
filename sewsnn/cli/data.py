"""``sewsnn data prepare NAME --root ORIGINAL --output PREPARED`` and ``data show CONFIG --output PNG``."""

from sewsnn.cli.train import LESS
from sewsnn.cli.words import whole
from sewsnn.train.schema import AT_MOST

_MOST_DRAWN = 256


def add(commands) -> None:
    data = commands.add_parser("data", help="prepare a data set's files for training, look at them")
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
    prepare.add_argument(
        "--workers",
        type=whole("--workers", 0, AT_MOST["data.workers"]),
        default=0,
        metavar="N",
        help="processes; 0: one per processor",
    )
    prepare.add_argument(
        "--size",
        type=whole("--size", 1, AT_MOST["data.image_size"]),
        default=256,
        metavar="PIXELS",
        help="imagenet: of the shorter side",
    )
    prepare.add_argument(
        "--on-corrupt", choices=("stop", "skip"), default="stop", help="a damaged file stops, or is left out and listed"
    )
    prepare.add_argument(
        "--per-shard",
        type=whole("--per-shard", 0, 10**6),
        default=0,
        metavar="N",
        help="imagenet: write WebDataset shards of N images each",
    )
    prepare.set_defaults(run=_prepare, less="fewer --workers")
    _add_show(verbs)


def _add_show(verbs) -> None:
    show = verbs.add_parser(
        "show",
        help="draw a batch as the network is given it",
        description="Draws the first samples of a batch of the configuration CONFIG, as they are after reading and "
        "augmentation. Any key can be set, as for train.",
        allow_abbrev=False,
    )
    show.add_argument("config", metavar="CONFIG", help="YAML file, see configs/")
    show.add_argument("--output", required=True, metavar="PNG", help="the picture")
    show.add_argument("--test", action="store_true", help="of the test set rather than of the first training epoch")
    show.add_argument(
        "--samples", type=whole("--samples", 1, _MOST_DRAWN), default=8, metavar="N", help="how many (default: 8)"
    )
    show.set_defaults(run=_show, overrides={}, less=LESS)


def _show(arguments) -> int:
    from pathlib import Path

    from sewsnn.analysis.figures import draw_samples
    from sewsnn.errors import DataError, one_line
    from sewsnn.files import check_output
    from sewsnn.train.build import build_data
    from sewsnn.train.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    check_output(Path(arguments.output), b"\x89PNG")
    source = build_data(config)
    batches = source.test_batches() if arguments.test else source.train_batches(0)
    part = "test" if arguments.test else "training"
    x, labels = next(iter(batches), (None, None))
    if x is None:
        why = one_line(next(iter(source.corrupt.values()), "there are none"))
        raise DataError(f"no {part} sample can be shown: {why}")
    title = f"{config.data.name}, {part} samples"
    draw_samples(source.to_float(x), labels, title, Path(arguments.output), arguments.samples, source.normalised)
    fewer = f" (a batch has {len(labels)} samples, not {arguments.samples})" if len(labels) < arguments.samples else ""
    print(f"see {arguments.output}{fewer}")
    return 0


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
