"""``sewsnn analyze VERB CONFIG --output DIR``: the analyses of the paper; :mod:`sewsnn.experiments` does the work."""

import importlib
import shlex
import sys
from pathlib import Path

from sewsnn.cli.train import LESS
from sewsnn.cli.words import whole
from sewsnn.progress import let_go_of_lost, tell

#: verb -> (one line, description). Each is a module of sewsnn.experiments with the function run.
_VERBS = {
    "rates": (
        "firing rates of the blocks, synaptic operations and energy (Fig. S2)",
        "Measures the firing rate of A^l and O^l in each block on the test set, names silent and saturated layers, and "
        "estimates the energy. SOURCE is the folder of a run, or a configuration: with --weights it measures these "
        "weights, without it fresh networks with ADD, AND and IAND. Several folders of runs are drawn side by side.",
    ),
    "gradients": (
        "norm of the gradient at each block, beside equation S4",
        "Measures ||dL/dS^l|| at each block of Spiking and SEW ResNets for the depths of analysis.depths and the pairs "
        "(V_th, alpha) of analysis.settings, and draws the prediction of equation S4 beside it. For the folder of a "
        "run, or with --weights, it measures that network only.",
    ),
    "surrogates": (
        "accuracy with several surrogate gradients (Table S3, A.5)",
        "Trains SEW and Spiking networks with the surrogate gradients of Table S3, and the network of A.5 whose last "
        "neurons have gradients of 1 at 0 and 1, each for several learning rates (analysis.sweep) and seeds.",
    ),
    "rtd": (
        "training with and without random temporal delete (Fig. S1)",
        "Trains Plain, Spiking and SEW networks with and without random temporal delete, for several seeds.",
    ),
    "functions": (
        "accuracy with ADD, AND, IAND, of Spiking and Plain networks (Table S2)",
        "Trains SEW networks with ADD, AND and IAND, the Spiking and the Plain network, each at its learning rate "
        "(analysis.learning_rates), for several seeds, and measures the firing rates of the trained networks.",
    ),
    "membrane": (
        "membrane potentials and spikes over time",
        "Draws membrane potentials and spikes of some neurons over time, and raster plots of their layers, for one "
        "test sample.",
    ),
}
_OF_NETWORKS = ("rates", "gradients", "membrane")  # they take the folder of a run, or --weights, as well


def add(commands) -> None:
    analyze = commands.add_parser(
        "analyze",
        help="repeat the analyses of the SEW ResNet paper",
        description="Repeats the analyses of the SEW ResNet paper on any configured data. Each analysis writes figures "
        "(PNG and SVG), the data behind them (CSV) and a report (Markdown) to --output. You can set any configuration "
        "key, as for sewsnn train.",
        epilog="sewsnn analyze VERB --help describes a verb.",
    )
    verbs = analyze.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (line, description) in _VERBS.items():
        parser = verbs.add_parser(verb, help=line, description=description, allow_abbrev=False)
        if verb in _OF_NETWORKS:
            several = {"nargs": "+"} if verb == "rates" else {}
            parser.add_argument("source", metavar="SOURCE", help="YAML file, or folder of a run", **several)
            parser.add_argument("--weights", metavar="FILE", help="checkpoint in any dialect, for a YAML file")
        else:
            parser.add_argument("source", metavar="CONFIG", help="YAML file, such as those in configs/")
        if verb == "membrane":
            parser.add_argument(
                "--layers", metavar="NAME,NAME", help="neuron layers (default: some, from the first to the last)"
            )
            parser.add_argument(
                "--neurons",
                type=whole("--neurons", 1, 64),
                default=3,
                metavar="N",
                help="neurons of each layer whose potential is drawn (default: 3)",
            )
            parser.add_argument(
                "--sample",
                type=whole("--sample", 0, 2**31 - 1),
                default=0,
                metavar="I",
                help="index of the test sample (default: 0)",
            )
        parser.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
        parser.set_defaults(run=_analyze, overrides={}, less=LESS)


def _analyze(arguments) -> int:
    from sewsnn.train.signals import Interrupted

    module = importlib.import_module(f"sewsnn.experiments.{arguments.verb}")
    options = {
        name: getattr(arguments, name) for name in ("weights", "layers", "neurons", "sample") if name in arguments
    }
    command = shlex.join(["sewsnn", *sys.argv[1:]])
    try:
        written = module.run(arguments.source, arguments.overrides, Path(arguments.output), command=command, **options)
    except Interrupted as stop:
        tell(f"sewsnn: {stop}; the same command continues")
        return 130
    finally:
        let_go_of_lost()
    print(f"wrote {written}", flush=True)
    return 0
