"""``sewsnn convert-checkpoint IN OUT --to DIALECT``."""


def add(commands) -> None:
    convert = commands.add_parser(
        "convert-checkpoint",
        help="convert a checkpoint to the weight names of another program",
        description="Reads the weights in IN, detects their dialect (the names of the weights), and writes them to OUT "
        "in the dialect DIALECT: sewsnn, torchvision (as SpikingJelly's models), authors (the code of the SEW "
        "ResNet paper) or containers (that code under SpikingJelly >= 0.0.0.0.8).",
        allow_abbrev=False,
    )
    convert.add_argument("source", metavar="IN", help="the checkpoint to read")
    convert.add_argument("target", metavar="OUT", help="the file to write")
    convert.add_argument(
        "--to", required=True, metavar="DIALECT", help="dialect of OUT: sewsnn, torchvision, authors or containers"
    )
    convert.add_argument("--model", metavar="NAME", help="network, such as sew_resnet18; needed if IN does not name it")
    convert.add_argument(
        "--container",
        default="model",
        metavar="KEY",
        help="OUT holds {KEY: weights}; '' for the weights alone (default: model)",
    )
    convert.add_argument("--force", action="store_true", help="replace OUT if it exists")
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
    print(f"wrote {arguments.target} in dialect {arguments.to!r}")
    return 0
