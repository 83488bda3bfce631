"""``sewsnn models [NAME]``."""


def add(commands) -> None:
    models = commands.add_parser(
        "models",
        help="list the networks and their sizes, or one network layer by layer",
        description="Lists all networks with their sizes. With NAME, shows that network layer by layer.",
    )
    models.add_argument("name", metavar="NAME", nargs="?", help="a network, such as sew_resnet18")
    models.set_defaults(run=_models)


def _models(arguments) -> int:
    from sewsnn.analysis.networks import networks_table, size_of, usual_steps

    name = arguments.name
    print(networks_table() if name is None else size_of(name, usual_steps(name)))
    return 0
