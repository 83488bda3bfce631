"""``sewsnn eval RUN``."""

from pathlib import Path

from sewsnn.cli.train import LESS
from sewsnn.cli.words import whole_list


def add(commands) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="measure accuracy, firing rates and latency of a trained network",
        description="Evaluates a network on the test set. RUN is the folder of a run, or a configuration together with "
        "--weights. The output shows, for several numbers of time-steps t, the accuracy and the firing rates after t "
        "time-steps and the latency of a batch with t time-steps. You can set any configuration key, as for sewsnn "
        "train.",
        allow_abbrev=False,
    )
    evaluate.add_argument("source", metavar="RUN", help="folder of a run, or a YAML file")
    evaluate.add_argument("--weights", metavar="FILE", help="checkpoint in any dialect (default: the last of the run)")
    evaluate.add_argument("--average", action="store_true", help="use the moving average of the weights (train.ema)")
    evaluate.add_argument(
        "--steps",
        type=whole_list("--steps"),
        metavar="1,2,4",
        help="values of t to report (default: powers of 2, and T)",
    )
    evaluate.add_argument("--json", metavar="FILE", help="also write the results to this file, as JSON")
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
