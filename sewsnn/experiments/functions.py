"""``sewsnn analyze functions``: the networks of Table S2, and the firing rates of Fig. S2 after training."""

from collections.abc import Mapping
from pathlib import Path

from sewsnn.experiments import forms, trained
from sewsnn.experiments.drawing import PAGE, drawing
from sewsnn.experiments.forms import KINDS
from sewsnn.experiments.rate_figures import CONNECTIONS, Run, add_block_rates
from sewsnn.experiments.rates import measure_blocks
from sewsnn.experiments.report import Report
from sewsnn.experiments.sources import open_networks
from sewsnn.experiments.sweep import run_cells
from sewsnn.train.checkpoint import NAME
from sewsnn.train.config import load_config


def run(source: str, overrides: Mapping[str, str], output: Path, *, command: str = "") -> Path:
    """Trains the SEW network with ADD, AND and IAND, the Spiking and the plain network, each at its learning rate
    (``analysis.learning_rates``), for several seeds, and measures the firing rates of the trained networks.

    Args:
        source: the configuration file.
        overrides: configuration keys and values, as on the command line.
        output: the folder for the report; the runs are in its folder ``runs/functions``.
        command: the command line, for the report.

    Returns:
        The path of the report.

    Raises:
        UserError: a setting, a file or a run is wrong; the message names it.
        Interrupted: SIGINT or SIGTERM arrived; the same call continues.

    Source: supplement, Tables S1 and S2, A.3 and Fig. S2.
    """
    config = load_config(source, dict(overrides))
    cells = {kind: forms.with_seeds(kind, forms.of_kind(config, kind), config.analysis.seeds) for kind in KINDS}
    flat = [cell for of_kind in cells.values() for cell in of_kind]
    forms.check_cells(flat)
    about = [
        f"network: {forms.network_in_words(config)} and its forms, T = {config.model.T}; "
        f"data: {forms.data_in_words(config)}; {config.train.epochs} epochs, {forms.seeds_in_words(config)}",
        forms.ORDER,
    ]
    with Report("functions", "ADD, AND, IAND, Spiking and Plain (Table S2)", output, about) as report:
        report.undecided = forms.why_undecided(config)
        outcomes = iter(run_cells(flat, output / "runs" / "functions", config.analysis.jobs))
        groups = {kind: [next(outcomes) for _ in of_kind] for kind, of_kind in cells.items()}
        _accuracies(report, groups)
        _rates(report, groups)
        return report.write(command)


def _accuracies(report: Report, groups) -> None:
    with drawing(1, 3, width=PAGE, height=2.0) as (figure, axes):
        for panel, measure in zip(axes[0], trained.MEASURES, strict=True):
            trained.draw_curves(panel, groups, measure)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(groups))
        report.figure(
            "curves",
            figure,
            "Training and test over the epochs. Lines: mean over seeds; bands: from the least to the largest value.",
        )
    known = {kind: trained.published_in_words("sew_7b_net", connect_f=kind) for kind in CONNECTIONS}
    known |= {kind: trained.published_in_words(f"{kind.lower()}_7b_net") for kind in ("Spiking", "Plain")}
    trained.accuracy_table(report, groups, known)
    report.say("The published accuracies are of 192 epochs.")
    rows = [
        row
        for kind, outcomes in groups.items()
        for o in outcomes
        for row in trained.epoch_rows(o, network=kind, seed=o.config.seed)
    ]
    columns = {"network": "ADD, AND, IAND: SEW network with this connection; Spiking; Plain", "seed": "seed of the run"}
    report.table("epochs", columns | trained.EPOCH_COLUMNS, rows)
    found = {kind: forms.spread(outcomes) for kind, outcomes in groups.items()}
    for low, high in (("AND", "IAND"), ("IAND", "ADD"), ("Spiking", "ADD"), ("Plain", "ADD")):
        report.find(
            f"{high} reaches a higher test accuracy than {low}.",
            forms.order(found[low], found[high]),
            f"{trained.in_words(high, found[high])}, {trained.in_words(low, found[low])} (last epoch).",
        )


def _rates(report: Report, groups) -> None:
    """Fig. S2: the rates of the SEW networks whose training did not diverge."""
    measured = {}
    for kind in CONNECTIONS:
        for o in groups[kind]:
            if not o.diverged:
                (opened,) = open_networks([str(o.folder)], {}, None)
                blocks = measure_blocks(opened, f"firing rates of {o.name}")
                measured.setdefault(kind, []).append(Run(o.config.seed, blocks))
    if measured:
        report.say(f"Firing rates of the trained SEW networks, from the checkpoints `{NAME}`:")
        add_block_rates(report, measured, compare=True)
