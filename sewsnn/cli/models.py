"""``sewsnn models [NAME]``."""


def add(commands) -> None:
    models = commands.add_parser("models", help="the networks and their sizes, or one of them layer by layer")
    models.add_argument("name", metavar="NAME", nargs="?")
    models.set_defaults(run=_models)


def _models(arguments) -> int:
    from sewsnn.analysis.networks import networks_table, size_of, usual_steps

    name = arguments.name
    print(networks_table() if name is None else size_of(name, usual_steps(name)))
    return 0
