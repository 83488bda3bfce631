"""``sewsnn analyze rtd``: training with and without random temporal delete (Fig. S1)."""

import copy
from collections.abc import Mapping
from pathlib import Path

from sewsnn.errors import ConfigError
from sewsnn.experiments import forms, trained
from sewsnn.experiments.drawing import MARKS, PAGE, drawing
from sewsnn.experiments.report import Report
from sewsnn.experiments.sweep import run_cells
from sewsnn.train import build
from sewsnn.train.config import Config, load_config

_FORMS = {"Plain": "Plain", "Spiking": "Spiking", "SEW": "ADD"}  # in the order of Fig. S1
_SIDES = {"with RTD": True, "without RTD": False}


def run(source: str, overrides: Mapping[str, str], output: Path, *, command: str = "") -> Path:
    """Trains the plain, the Spiking and the SEW (ADD) network with and without random temporal delete (RTD).

    RTD keeps ``data.T_train`` of the T time-steps of each training batch; where the configuration does not set it, 3/4
    of T as in the paper.

    Args:
        source: the configuration file; its data are sequences.
        overrides: configuration keys and values, as on the command line.
        output: the folder for the report; the runs are in its folder ``runs/rtd``.
        command: the command line, for the report.

    Returns:
        The path of the report.

    Raises:
        UserError: a setting, a file or a run is wrong; the message names it.
        Interrupted: SIGINT or SIGTERM arrived; the same call continues.

    Source: supplement, A.2 and Fig. S1.
    """
    config = load_config(source, dict(overrides))
    T, T_train = config.model.T, config.data.T_train or max(1, 3 * config.model.T // 4)
    if T_train >= T:
        raise ConfigError(f"data.T_train must be below model.T ({T}) to delete time-steps, got {T_train}")
    cells = {}
    for form, kind in _FORMS.items():
        for side, deletes in _SIDES.items():
            one = forms.of_kind(config, kind)
            one.data.T_train = T_train if deletes else 0
            name = f"{form}-{side.replace(' ', '-')}"
            cells[form, side] = forms.with_seeds(name, one, config.analysis.seeds)
    flat = [cell for group in cells.values() for cell in group]
    _check_sequences(config)
    forms.check_cells(flat)
    about = [
        f"network: {forms.network_in_words(config)} and its forms; data: {forms.data_in_words(config)}; T = {T}, "
        f"T_train = {T_train} with RTD; {config.train.epochs} epochs, {forms.seeds_in_words(config)}",
        forms.ORDER,
    ]
    with Report("rtd", "Random temporal delete (Fig. S1)", output, about) as report:
        report.undecided = forms.why_undecided(config)
        outcomes = iter(run_cells(flat, output / "runs" / "rtd", config.analysis.jobs))
        groups = {key: [next(outcomes) for _ in group] for key, group in cells.items()}
        _draw(report, groups)
        known = {"SEW with RTD": trained.published_in_words("sew_7b_net", connect_f="ADD")}
        known |= {
            f"{form} with RTD": trained.published_in_words(f"{form.lower()}_7b_net") for form in ("Plain", "Spiking")
        }
        trained.accuracy_table(report, {f"{form} {side}": found for (form, side), found in groups.items()}, known)
        report.say("The paper shows curves and no numbers; the published accuracies are of 192 epochs.")
        rows = [
            row
            for (form, side), found in groups.items()
            for o in found
            for row in trained.epoch_rows(o, network=form, rtd=int(_SIDES[side]), seed=o.config.seed)
        ]
        columns = {"network": "Plain, Spiking or SEW (ADD)", "rtd": "1 with, 0 without RTD", "seed": "seed of the run"}
        report.table("epochs", columns | trained.EPOCH_COLUMNS, rows)
        _findings(report, groups)
        return report.write(command)


def _check_sequences(config: Config) -> None:
    one = copy.deepcopy(config)
    one.data.T_train = 0
    if not build.build_data(one).sequences:
        raise ConfigError(
            f"data.name: {config.data.name} has still images, which have no time-steps to delete; choose event data, "
            "for example moving_digits"
        )


def _draw(report: Report, groups) -> None:
    marks = (MARKS[1], MARKS[0])
    with drawing(3, 3, width=PAGE, height=5.2, sharex=True) as (figure, axes):
        for row, form in zip(axes, _FORMS, strict=True):
            of_form = {side: groups[form, side] for side in _SIDES}
            for panel, measure in zip(row, trained.MEASURES, strict=True):
                trained.draw_curves(panel, of_form, measure, marks)
            row[0].set_title(f"{form} network", loc="left")
        for panel in axes[:-1].flat:
            panel.set_xlabel("")  # the last row has it
        axes[0, 0].legend()
        report.figure(
            "curves",
            figure,
            "Training loss, training accuracy and test accuracy with and without random temporal delete. Lines: mean "
            "over seeds; bands: from the least to the largest value.",
        )


def _findings(report: Report, groups) -> None:
    """The statements of A.2, for each network."""
    for measure, claim, sign in (
        ("train_loss", "RTD raises the training loss", 1),
        ("train_accuracy", "RTD lowers the training accuracy", -1),
        ("test_accuracy", "RTD raises the test accuracy", 1),
    ):
        for form in _FORMS:
            with_, without = (forms.spread(groups[form, side], measure) for side in _SIDES)
            pair_of = (with_, without)
            pair = (without, with_) if sign > 0 else (with_, without)
            shown = [found.words() if measure == "train_loss" else found.percent() for found in pair_of]
            lost = measure == "train_loss" and any(found.diverged for found in pair_of)  # no loss to compare
            holds = None if lost else forms.order(*pair)
            why = ""
            if holds is False and measure == "test_accuracy":
                why = " RTD helps where a network overfits; here "
                gaps = [
                    forms.spread(groups[form, s], "train_accuracy").mean - forms.spread(groups[form, s]).mean
                    for s in _SIDES
                ]
                why += f"training minus test accuracy is {100 * gaps[1]:.1f} points without RTD."
            report.find(f"{claim} ({form}).", holds, f"{shown[0]} with, {shown[1]} without.{why}")
