"""``sewsnn eval RUN``."""

from pathlib import Path

from sewsnn.cli.train import LESS
from sewsnn.cli.words import whole_list


def add(commands) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="accuracy, firing rates and latency of a trained network, per time-step",
        description="Evaluates the network in the folder RUN of a run, or of the configuration RUN with --weights, on "
        "the test set: accuracy and firing rates after the first t time-steps, latency of t time-steps. Any key of the "
        "configuration can be set, as for train.",
        allow_abbrev=False,
    )
    evaluate.add_argument("source", metavar="RUN", help="a run's folder, or a YAML file")
    evaluate.add_argument("--weights", metavar="FILE", help="a checkpoint of any dialect; default: the run's last")
    evaluate.add_argument("--average", action="store_true", help="the moving average of the weights (train.ema)")
    evaluate.add_argument("--steps", type=whole_list("--steps"), metavar="1,2,4", help="which t to report")
    evaluate.add_argument("--json", metavar="FILE", help="where the numbers go, too")
    evaluate.set_defaults(run=_evaluate, overrides={}, less=LESS)


def _evaluate(arguments) -> int:
    from sewsnn.files import check_output
    from sewsnn.train.finished import evaluate_run, open_run, table, write_evaluation

    if arguments.json:
        check_output(Path(arguments.json), b"{")
    config, model, data = open_run(Path(arguments.source), arguments.overrides, arguments.weights, arguments.average)
    result = evaluate_run(config, model, data, arguments.steps)
    print(table(result), flush=True)
    if arguments.json:
        write_evaluation(result, Path(arguments.json))
    return 0
