"""``sewsnn export SOURCE OUT``."""

import argparse

from sewsnn.cli.words import whole
from sewsnn.train.schema import AT_MOST


def add(commands) -> None:
    export = commands.add_parser(
        "export",
        help="export a trained network to torch.export or ONNX",
        description="Writes the network in SOURCE to OUT, as a torch.export program (.pt2) or an ONNX graph (.onnx). "
        "Both run without sewsnn (unless --native is set). Before OUT is put in place, the command runs the exported "
        "network and compares its spikes with those of the original.",
        allow_abbrev=False,
    )
    export.add_argument("source", metavar="SOURCE", help="checkpoint of sewsnn train, or weights in any dialect")
    export.add_argument("target", metavar="OUT", help="the file to write")
    export.add_argument(
        "--format", choices=("torch", "onnx"), help="format of OUT (default: by the suffix of its name)"
    )
    export.add_argument(
        "--model", metavar="NAME", help="network, such as sew_resnet18; needed if SOURCE does not name it"
    )
    export.add_argument(
        "--T",
        type=whole("--T", 1, AT_MOST["model.T"]),
        metavar="N",
        help="number of time-steps (default: as in training)",
    )
    export.add_argument(
        "--batch",
        type=_batch,
        default=None,
        metavar="N|dynamic",
        help="samples per call; dynamic: any number (default: dynamic)",
    )
    export.add_argument(
        "--image-size",
        type=whole("--image-size", 1, AT_MOST["data.image_size"]),
        nargs="+",
        metavar="PIXELS",
        help="height and width of the input, or one number for both (default: as in training)",
    )
    export.add_argument(
        "--sequence",
        action=argparse.BooleanOptionalAction,
        help="input is [T, N, C, H, W] instead of [N, C, H, W] (default: as in training)",
    )
    export.add_argument(
        "--native", action="store_true", help="torch: keep sewsnn's fused operators; loading OUT then needs sewsnn"
    )
    export.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        help="fold batch norm into the convolutions (default: if that changes no spike)",
    )
    export.add_argument(
        "--max-flipped",
        type=float,
        default=1e-4,
        metavar="SHARE",
        help="fraction of a layer's spikes that may differ because of rounding (default: 1e-4)",
    )
    export.add_argument("--container", metavar="KEY", help="key of SOURCE that holds the weights, such as model_ema")
    export.add_argument("--force", action="store_true", help="replace OUT if it exists")
    export.set_defaults(run=_export, less="a smaller --batch, --image-size or --T")


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else whole("--batch", 1, AT_MOST["data.batch_size"])(text)


def _export(arguments) -> int:
    import os

    from sewsnn.errors import UserError
    from sewsnn.export import check_target, export_model
    from sewsnn.export.source import open_source
    from sewsnn.files import exists

    size = arguments.image_size
    if size and len(size) > 2:
        raise UserError(f"--image-size must be height and width, or one number for both; got {len(size)} numbers")
    if exists(arguments.target, follow=True):
        if os.path.exists(arguments.source) and os.path.samefile(arguments.source, arguments.target):
            raise UserError(f"{arguments.target} is the file SOURCE itself; OUT must be another file")
        if not arguments.force and not os.path.isdir(arguments.target):
            raise UserError(f"{arguments.target} exists already: --force replaces it")
    try:
        check_target(arguments.target, arguments.format, arguments.native)
        source = open_source(arguments.source, arguments.model, arguments.T, arguments.container)
        print(source.report)
        samples = arguments.batch or 2
        report = export_model(
            source.model,
            source.example(samples, size and (size[0], size[-1]), arguments.sequence),
            arguments.target,
            arguments.format,
            dynamic=arguments.batch is None,
            native=arguments.native,
            fold=arguments.fold,
            max_flipped=arguments.max_flipped,
            progress=True,
        )
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    print(report)
    return 0
