"""Figures of a training run, and of its data."""

from pathlib import Path

from torch import Tensor

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
        parse_math=False,  # a name may have dollars
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
    figure.suptitle(f"{title}: firing rate per layer, test set", fontsize=10, parse_math=False)
    _save(figure, path)


def draw_samples(x: Tensor, labels: Tensor, title: str, path: Path, most: int = 8) -> None:
    """The first ``most`` samples of a batch, as one PNG: images side by side; sequences a row each, frame after frame.

    Args:
        x: what a network is given, images ``[N, C, H, W]`` or sequences ``[T, N, C, H, W]``, on any device. Three
            channels are colours, scaled to the sample's own range; of two, the polarities of events, the second less
            the first is drawn, red above 0 and blue below; of others the first is.
        labels: ``[N]``.
    """
    sequences = x.dim() == 5
    samples = (x.movedim(1, 0) if sequences else x[:, None])[:most].detach().float().cpu()  # [N, T, C, H, W]
    count, T, channels = samples.shape[:3]
    rows, columns = (count, T) if sequences else (-(-count // 4), min(count, 4))
    figure = _figure(figsize=(1.1 * columns + 0.6, 1.1 * rows + 0.5))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, frames in enumerate(samples):
        low, high = float(frames.min()), float(frames.max())
        scale = max(float(frames.abs().quantile(0.999)) if frames.numel() < 2**24 else high, 1e-6)
        for t, frame in enumerate(frames):
            axes = grid[i, t] if sequences else grid[i // columns, i % columns]
            if channels == 3:
                axes.imshow(((frame - low) / max(high - low, 1e-6)).movedim(0, -1))
            elif channels == 2:
                axes.imshow(frame[1] - frame[0], cmap="RdBu_r", vmin=-scale, vmax=scale)
            else:
                axes.imshow(frame[0], cmap="gray", vmin=low, vmax=high)
            if t == 0:
                axes.set_title(f"class {int(labels[i])}", fontsize=7, pad=2)
            elif i == 0:
                axes.set_title(f"t = {t + 1}", fontsize=7, pad=2)
    figure.suptitle(title, fontsize=9)
    _save(figure, path)
