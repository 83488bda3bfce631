"""``sewsnn convert-checkpoint IN OUT --to DIALECT``."""


def add(commands) -> None:
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
