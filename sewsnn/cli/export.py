"""``sewsnn export SOURCE OUT``."""

import argparse

from sewsnn.cli.words import whole
from sewsnn.train.schema import AT_MOST


def add(commands) -> None:
    export = commands.add_parser(
        "export",
        help="write a trained network as a torch.export program or an ONNX graph",
        description="Writes the network in SOURCE to OUT, which runs without sewsnn: a program of torch.export (.pt2) "
        "or an ONNX graph (.onnx). What was written is run beside the network, spike by spike, before OUT is put in "
        "place.",
        allow_abbrev=False,
    )
    export.add_argument("source", metavar="SOURCE", help="a checkpoint of sewsnn train, or weights of any dialect")
    export.add_argument("target", metavar="OUT", help="the file to write")
    export.add_argument("--format", choices=("torch", "onnx"), help="of OUT (default: as its name ends)")
    export.add_argument("--model", metavar="NAME", help="the network, such as sew_resnet18, if SOURCE does not name it")
    export.add_argument(
        "--T", type=whole("--T", 1, AT_MOST["model.T"]), metavar="N", help="time-steps (default: as trained)"
    )
    export.add_argument(
        "--batch", type=_batch, default=None, metavar="N|dynamic", help="samples per call (default: dynamic, any)"
    )
    export.add_argument(
        "--image-size",
        type=whole("--image-size", 1, AT_MOST["data.image_size"]),
        nargs="+",
        metavar="PIXELS",
        help="height and width, or one for both",
    )
    export.add_argument(
        "--sequence", action=argparse.BooleanOptionalAction, help="the input is [T, N, C, H, W] (default: as trained)"
    )
    export.add_argument("--native", action="store_true", help="torch: keep sewsnn's fast ops; loading needs sewsnn")
    export.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        help="batch norm into the weights (default: if no spike changes by it)",
    )
    export.add_argument(
        "--max-flipped",
        type=float,
        default=1e-4,
        metavar="SHARE",
        help="of a layer's spikes that may differ by rounding (default: 1e-4; 0: none)",
    )
    export.add_argument("--container", metavar="KEY", help="the key of SOURCE with the weights, such as model_ema")
    export.add_argument("--force", action="store_true", help="replace OUT if it is there")
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
        raise UserError(f"--image-size must be height and width, or one for both, got {len(size)} numbers")
    if exists(arguments.target, follow=True):
        if os.path.exists(arguments.source) and os.path.samefile(arguments.source, arguments.target):
            raise UserError(f"{arguments.target} is the checkpoint itself: OUT must be another file")
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
