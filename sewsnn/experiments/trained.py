"""What the reports on trained networks share: curves over the epochs, accuracy tables, and the data behind both."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from sewsnn.experiments.drawing import MARKS, line_with_band
from sewsnn.experiments.forms import Spread, spread
from sewsnn.experiments.report import Report
from sewsnn.experiments.sweep import Outcome
from sewsnn.models.published import published

EPOCH_COLUMNS = {
    "epoch": "number of the epoch, from 1",
    "lr": "learning rate at the end of the epoch",
    "train_loss": "loss over the training samples of the epoch, while the weights change",
    "train_accuracy": "accuracy over the training samples of the epoch, in [0, 1]",
    "test_loss": "loss on the test set after the epoch",
    "test_accuracy": "accuracy on the test set after the epoch, in [0, 1]",
    "diverged": "1: the run stopped at an infinite or NaN loss or gradient after this epoch, else 0",
}
MEASURES = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy / %",
    "test_accuracy": "test accuracy / %",
}


def epoch_rows(outcome: Outcome, **labels) -> list[dict]:
    """Returns one row per epoch of a run for :data:`EPOCH_COLUMNS`, with further labels."""
    names = [name for name in EPOCH_COLUMNS if name not in ("epoch", "diverged")]
    rows = [
        labels
        | {"epoch": int(row["epoch"]) + 1}
        | {name: row[name] for name in names}
        | {"diverged": int(bool(outcome.diverged) and i + 1 == len(outcome.history))}
        for i, row in enumerate(outcome.history)
    ]
    return rows or [labels | {"epoch": 0, "diverged": 1}]


def draw_curves(axes, groups: Mapping[str, Sequence[Outcome]], measure: str, marks=MARKS) -> None:
    """Draws the mean of a measure over the seeds against the epoch, with a band from the least to the largest value.
    A run that diverged is drawn as far as it came.

    Args:
        axes: the panel.
        groups: label -> runs that differ in their seed.
        measure: one of :data:`MEASURES`.
        marks: how each group is drawn.
    """
    from matplotlib.ticker import MaxNLocator

    factor = 1 if measure.endswith("loss") else 100
    for (label, outcomes), mark in zip(groups.items(), marks, strict=False):
        points = sorted((row["epoch"] + 1, factor * row[measure]) for o in outcomes for row in o.history)
        by_epoch = {epoch: [value for _, value in values] for epoch, values in groupby(points, lambda point: point[0])}
        epochs = list(by_epoch)
        means = [sum(values) / len(values) for values in by_epoch.values()]
        lows, highs = ([f(values) for values in by_epoch.values()] for f in (min, max))
        every = max(1, len(epochs) // 8)
        line_with_band(axes, epochs, means, lows, highs, mark, label=label, markevery=every)
    axes.set_xlabel("epoch")
    axes.set_ylabel(MEASURES[measure])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def accuracy_table(report: Report, groups: Mapping[str, Sequence[Outcome]], known: Mapping[str, str]) -> None:
    """Adds a table of the accuracies of the last and the best epoch, beside the published ones.

    Args:
        report: the report. If its accuracies have no meaning (``report.undecided``), it shows no published ones.
        groups: label -> runs that differ in their seed.
        known: label -> the published accuracy in words (:func:`published_in_words`); a label may be missing.
    """
    rows = []
    for label, outcomes in groups.items():
        rate = f"{outcomes[0].config.optimizer.lr:g}"
        found = (spread(outcomes, name).percent() for name in ("train_accuracy", "test_accuracy", "best"))
        rows.append((label, rate, *found, "" if report.undecided else known.get(label, "")))
    head = ("network", "learning rate", "training accuracy", "test accuracy, last epoch", "best epoch", "published")
    report.show(head, rows)
    report.say(f"Accuracies are mean ± standard deviation over the seeds. {report.undecided}".rstrip())


def published_in_words(name: str, **settings) -> str:
    """``97.92 % (DVS Gesture)``: the one published result of a network with these settings. Second-hand numbers say so.

    Args:
        name, settings: as for :func:`sewsnn.models.published.published`.
    """
    (result,) = published(name, **settings)
    note = f", {result.source}" if result.source.startswith("reported by others") else ""
    return f"{result.accuracy:.2f} % ({result.data}{note})"


def in_words(label: str, found: Spread) -> str:
    """``ADD 92.1 ± 0.3 %``."""
    return f"{label} {found.percent()}"
