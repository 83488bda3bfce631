"""Figures of a training run and of its data."""

import math
from pathlib import Path

from torch import Tensor

from sewsnn.errors import UserError
from sewsnn.files import write_atomic

TRAIN, TEST, AVERAGE = "#4477aa", "#cc3311", "#228833"


def _figure(**kwargs):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'sewsnn[train]'") from None
    return Figure(layout="constrained", dpi=150, **kwargs)


def _save(figure, path: Path) -> None:
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def draw_curves(history: list[dict], title: str, path: Path, published: float | None = None) -> None:
    """Draws loss and accuracy over the epochs as one PNG: training, test, the moving average of the weights, published.

    Args:
        history: one dictionary per epoch with ``epoch``, ``test_accuracy`` and, where known, ``train_loss``,
            ``train_accuracy``, ``test_loss``, ``average_loss``, ``average_accuracy`` (accuracies in [0, 1]). The moving
            average exists with ``train.ema``.
        title: name of the run.
        path: the PNG file to write.
        published: published test accuracy in percent, drawn as a line. Default None.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(figsize=(9, 3.6))
    epochs = [row["epoch"] + 1 for row in history]
    marker = "o" if len(epochs) <= 30 else None
    for axes, name, factor, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("cross entropy", "accuracy / %"), strict=True
    ):
        for split, colour in (("train", TRAIN), ("test", TEST), ("average", AVERAGE)):
            values = [row.get(f"{split}_{name}") for row in history]
            if all(value is None for value in values):
                continue
            values = [math.nan if value is None else factor * value for value in values]
            of = {"average": "test, moving average"}.get(split, split)
            axes.plot(epochs, values, color=colour, marker=marker, markersize=3, linewidth=1.4, label=of)
        if published is not None and name == "accuracy":
            axes.axhline(published, color=TEST, linewidth=1, linestyle="--", label="published")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    best = max(history, key=lambda row: row["test_accuracy"])
    figure.suptitle(
        f"{_shortened(title)}: test accuracy {100 * history[-1]['test_accuracy']:.2f} % after the last epoch, "
        f"best {100 * best['test_accuracy']:.2f} % (epoch {best['epoch'] + 1})",
        fontsize=10,
    )
    _save(figure, path)


def draw_firing_rates(rates: dict[str, float], title: str, path: Path) -> None:
    """Draws the firing rate of each neuron layer as one PNG, the first layer on top.

    Args:
        rates: module name -> spikes per neuron and time-step.
        title: name of the run.
        path: the PNG file to write.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    figure = _figure(figsize=(7, 1.2 + 0.26 * max(len(rates), 1)))
    axes = figure.subplots()
    names = list(rates)
    bars = axes.barh(names, [rates[n] for n in names], color=TRAIN, height=0.7)
    axes.bar_label(bars, labels=[_rate(rates[n]) for n in names], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.5 / max(len(rates), 1))
    axes.set_xlim(0, max(0.05, 1.15 * max((rate for rate in rates.values() if math.isfinite(rate)), default=0)))
    axes.set_xlabel("spikes per neuron and time-step")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{_shortened(title)}: firing rate per layer, test set", fontsize=10)
    _save(figure, path)


def _rate(rate: float) -> str:
    """The rate with three decimals, or with two significant digits if three decimals would show 0."""
    return f"{rate:.3f}" if rate == 0 or not abs(rate) < 0.001 else f"{rate:.1e}"


def draw_samples(
    x: Tensor,
    labels: Tensor,
    title: str,
    path: Path,
    most: int = 8,
    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> None:
    """Draws the first samples of a batch as one PNG: images side by side, or one row of frames per sequence.

    Three channels are drawn as colours. Two channels are the polarities of events; the figure shows the second (on, p =
    1) minus the first (off, p = 0): red above 0, blue below, white where both are equal. For any other number of
    channels the figure shows the first channel in grey.

    Args:
        x: input of a network, images ``[N, C, H, W]`` or sequences ``[T, N, C, H, W]``, on any device.
        labels: class numbers ``[N]``.
        title: name of the data.
        path: the PNG file to write.
        most: largest number of samples. Default 8.
        normalised: mean and standard deviation of each channel in [0, 1], which are undone. Default None: colours are
            in [0, 1] already, or else each sample is scaled to its own range, and the title says so.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    sequences = x.dim() == 5
    samples = (x.movedim(1, 0) if sequences else x[:, None])[:most].detach().float().cpu()  # [N, T, C, H, W]
    count, T, channels = samples.shape[:3]
    note = ""
    if normalised is not None and channels == len(normalised[0]):
        mean, deviation = (samples.new_tensor(values)[:, None, None] for values in normalised)
        samples = (samples * deviation + mean).clamp(0, 1)
    elif channels == 3 and not (samples.min() >= 0 and samples.max() <= 1):
        note = "; colours scaled to each sample's range"
    elif channels == 2:
        note = "; red: more on events (p = 1), blue: more off events (p = 0)"
    rows, columns = (count, T) if sequences else (-(-count // 4), min(count, 4))
    figure = _figure(figsize=(max(1.1 * columns + 0.6, 4.5), 1.2 * rows + 0.6))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, frames in enumerate(samples):
        low, high = float(frames.min()), float(frames.max())
        scale = max(float(frames.abs().quantile(0.999)) if frames.numel() < 2**24 else high, 1e-6)
        for t, frame in enumerate(frames):
            axes = grid[i, t] if sequences else grid[i // columns, i % columns]
            if channels == 3:
                own = (frame - low) / max(high - low, 1e-6) if note else frame
                axes.imshow(own.movedim(0, -1))
            elif channels == 2:
                axes.imshow(frame[1] - frame[0], cmap="RdBu_r", vmin=-scale, vmax=scale)
            else:
                axes.imshow(frame[0], cmap="gray", vmin=min(low, 0.0), vmax=max(high, 1e-6))
            words = [f"t = {t + 1}"] if sequences and (i == 0 or t == 0) else []
            words += [f"class {int(labels[i])}"] if t == 0 else []
            axes.set_title("\n".join(reversed(words)), fontsize=7, pad=2)
    figure.suptitle(f"{_shortened(title)}{note}", fontsize=8, wrap=True)
    _save(figure, path)


def _shortened(title: str, most: int = 60) -> str:
    return title if len(title) <= most else f"{title[: most // 2]}...{title[-most // 2 :]}"
