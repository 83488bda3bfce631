"""``sewsnn data prepare NAME --root ORIGINAL --output PREPARED`` and ``data show CONFIG --output PNG``."""

from sewsnn.cli.train import LESS
from sewsnn.cli.words import whole
from sewsnn.train.schema import AT_MOST

_MOST_DRAWN = 256


def add(commands) -> None:
    data = commands.add_parser(
        "data",
        help="prepare the files of a data set, or draw samples from it",
        description="Prepares the files of a data set for training, or draws samples from it.",
        epilog="sewsnn data VERB --help describes a verb.",
    )
    verbs = data.add_subparsers(dest="verb", required=True, metavar="VERB")
    prepare = verbs.add_parser(
        "prepare",
        help="convert the original files to a form that training reads fast",
        description="Reads the original files of a data set and writes files that training reads fast. You can stop it "
        "at any moment; the same command then resumes. Training refuses the folder until the preparation is finished.",
        allow_abbrev=False,
    )
    prepare.add_argument("name", metavar="NAME", help="data set: imagenet, dvs128_gesture or cifar10_dvs")
    prepare.add_argument("--root", required=True, metavar="FOLDER", help="folder of the original files")
    prepare.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder for the prepared files, outside --root"
    )
    prepare.add_argument(
        "--workers",
        type=whole("--workers", 0, AT_MOST["data.workers"]),
        default=0,
        metavar="N",
        help="worker processes; 0: one per processor (default: 0)",
    )
    prepare.add_argument(
        "--size",
        type=whole("--size", 1, AT_MOST["data.image_size"]),
        default=256,
        metavar="PIXELS",
        help="imagenet: length of the shorter side (default: 256)",
    )
    prepare.add_argument(
        "--on-corrupt",
        choices=("stop", "skip"),
        default="stop",
        help="stop at a damaged file, or leave it out and list it in the report (default: stop)",
    )
    prepare.add_argument(
        "--per-shard",
        type=whole("--per-shard", 0, 10**6),
        default=0,
        metavar="N",
        help="imagenet: write WebDataset shards of N images each (default: 0, folders of images)",
    )
    prepare.set_defaults(run=_prepare, less="fewer --workers")
    _add_show(verbs)


def _add_show(verbs) -> None:
    show = verbs.add_parser(
        "show",
        help="draw samples as the network receives them",
        description="Draws the first samples of the first batch of the configuration CONFIG, after reading and "
        "augmentation. You can set any configuration key, as for sewsnn train: --data.root FOLDER.",
        allow_abbrev=False,
    )
    show.add_argument("config", metavar="CONFIG", help="YAML file, such as those in configs/")
    show.add_argument("--output", required=True, metavar="PNG", help="PNG file to write")
    show.add_argument(
        "--test", action="store_true", help="draw test samples instead of samples of the first training epoch"
    )
    show.add_argument(
        "--samples",
        type=whole("--samples", 1, _MOST_DRAWN),
        default=8,
        metavar="N",
        help="number of samples (default: 8)",
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
        why = one_line(next(iter(source.corrupt.values()), "there are no samples"))
        raise DataError(f"cannot show a {part} sample: {why}")
    title = f"{config.data.name}, {part} samples"
    draw_samples(source.to_float(x), labels, title, Path(arguments.output), arguments.samples, source.normalised)
    fewer = f" (a batch has only {len(labels)} samples)" if len(labels) < arguments.samples else ""
    print(f"wrote {arguments.output}{fewer}")
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
