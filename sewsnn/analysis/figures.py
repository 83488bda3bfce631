"""Figures of a training run."""

from pathlib import Path

from sewsnn.errors import UserError
from sewsnn.files import write_atomic

TRAIN, TEST = "#4477aa", "#cc3311"


def _figure(**kwargs):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'sewsnn[train]'") from None
    return Figure(layout="constrained", dpi=150, **kwargs)


def _save(figure, path: Path) -> None:
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def draw_curves(history: list[dict], title: str, path: Path, published: float | None = None) -> None:
    """Loss and accuracy over epochs, training and test, and the published test accuracy (in percent), as one PNG."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(figsize=(9, 3.6))
    epochs = [row["epoch"] + 1 for row in history]
    marker = "o" if len(epochs) <= 30 else None
    for axes, name, factor, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("cross entropy", "accuracy / %"), strict=True
    ):
        for split, colour in (("train", TRAIN), ("test", TEST)):
            values = [factor * row[f"{split}_{name}"] for row in history]
            axes.plot(epochs, values, color=colour, marker=marker, markersize=3, linewidth=1.4, label=split)
        if published is not None and name == "accuracy":
            axes.axhline(published, color=TEST, linewidth=1, linestyle="--", label="published")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    best = max(history, key=lambda row: row["test_accuracy"])
    figure.suptitle(
        f"{title}: test accuracy {100 * history[-1]['test_accuracy']:.2f} % after the last epoch, "
        f"best {100 * best['test_accuracy']:.2f} % (epoch {best['epoch'] + 1})",
        fontsize=10,
    )
    _save(figure, path)


def draw_firing_rates(rates: dict[str, float], title: str, path: Path) -> None:
    """Firing rate per neuron layer, first layer on top, as one PNG."""
    figure = _figure(figsize=(7, 1.2 + 0.26 * len(rates)))
    axes = figure.subplots()
    names = list(rates)
    bars = axes.barh(names, [rates[n] for n in names], color=TRAIN, height=0.7)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(0.05, 1.15 * max(rates.values())))
    axes.set_xlabel("spikes per neuron and time-step")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: firing rate per layer, test set", fontsize=10)
    _save(figure, path)
