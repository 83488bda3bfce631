"""The figures of ``sewsnn analyze gradients``: norms over the blocks, and over the depth of the network."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from sewsnn.analysis.gradients import BlockGradient
from sewsnn.experiments.drawing import COLUMN, MARKS, PAGE, drawing, line_with_band
from sewsnn.experiments.report import Report

_PANELS = 3  # in a row
_PREDICTION, _DOWNSAMPLE = "prediction", "downsample block"  # in the legend


class Setting(NamedTuple):
    """Threshold and surrogate gradient of the neurons.

    Attributes:
        v_threshold: V_th.
        surrogate: the name of the surrogate gradient, such as ``ATan``.
        alpha: its parameter.
        a: Theta'(1 - V_th), the factor of a neuron that fires.
        b: Theta'(0 - V_th), the factor of a silent neuron.
    """

    v_threshold: float
    surrogate: str
    alpha: float | None
    a: float
    b: float

    @classmethod
    def of(cls, v_threshold: float, surrogate) -> "Setting":
        """The setting of a neuron with this threshold and surrogate gradient."""
        x = torch.tensor([1.0, 0.0], dtype=torch.float64) - v_threshold
        a, b = surrogate.gradient(x).tolist()
        return cls(v_threshold, type(surrogate).__name__, getattr(surrogate, "parameter", None), a, b)

    def words(self) -> str:
        """``V_th = 0.5, alpha = 2``."""
        parameter = "" if self.alpha is None else f", alpha = {self.alpha:g}"
        return f"V_th = {self.v_threshold:g}{parameter}"

    def title(self) -> str:
        """The title of a panel: the setting and its two factors."""
        parameter = "" if self.alpha is None else rf",\ \alpha={self.alpha:g}"
        return f"$V_{{th}}={self.v_threshold:g}{parameter}$\n$a={self.a:.2g},\\ b={self.b:.2g}$"


class Pass(NamedTuple):
    """What was measured for one network and one seed.

    Attributes:
        model: name of the network.
        label: name of its kind in figures, such as ``SEW ADD``.
        depth: depth in the name of a ResNet, else the number of blocks.
        zero_init: whether its identity blocks were made by ``zero_init_residual``; None: its weights are not fresh.
        setting: threshold and surrogate gradient.
        seed: of weights and batch.
        blocks: the gradient at each block.
        predicted: the prediction for each block, or None.
    """

    model: str
    label: str
    depth: int
    zero_init: bool | None
    setting: Setting
    seed: int
    blocks: list[BlockGradient]
    predicted: list[float | None]

    @property
    def ratio(self) -> float:
        """||dL/dS^1|| / ||dL/dS^L||, first block to last block; NaN if it is 0 or not finite."""
        return quotient(self.blocks[0].norm, self.blocks[-1].norm)


def quotient(x: float | None, y: float) -> float:
    """x / y if both are positive and finite, else NaN: a logarithmic axis cannot show it."""
    usable = x is not None and 0 < x < math.inf and 0 < y < math.inf
    found = x / y if usable else math.nan
    return found if 0 < found < math.inf else math.nan


class Spread(NamedTuple):
    """Geometric mean, least and greatest of a number over the seeds; NaN if no seed has it."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of the values that are not NaN."""
        kept = [value for value in values if not math.isnan(value)]
        if not kept:
            return cls(math.nan, math.nan, math.nan)
        return cls(math.exp(math.fsum(map(math.log, kept)) / len(kept)), min(kept), max(kept))


def settings_of(passes: Sequence[Pass]) -> list[Setting]:
    """The settings of the passes, in their order."""
    return list(dict.fromkeys(p.setting for p in passes))


def _labels(passes: Sequence[Pass]) -> list[str]:
    return list(dict.fromkeys(p.label for p in passes))


def _grid(count: int, width: float, sharey: bool):
    """The context of a figure with ``count`` panels side by side that share their horizontal axis."""
    columns = min(count, _PANELS)
    rows = math.ceil(count / columns)
    return drawing(rows, columns, width=width, height=1.3 + 1.3 * rows, sharex=True, sharey=sharey)


def _finish(figure, axes, settings: Sequence[Setting], label_x: str, label_y: str) -> None:
    for panel in axes.flat[len(settings) :]:
        panel.set_visible(False)
    for panel, setting in zip(axes.flat, settings, strict=False):
        panel.set_title(setting.title(), fontsize=6.3)
        panel.set_yscale("log")
        panel.margins(x=0.04)
        panel.tick_params(labelbottom=True)
    figure.supxlabel(label_x, fontsize=7.5)
    figure.supylabel(label_y, fontsize=7.5)
    handles = dict.fromkeys(line.get_label() for line in axes[0, 0].lines if not line.get_label().startswith("_"))
    for label in (_PREDICTION, _DOWNSAMPLE):  # last in the legend
        if label in handles:
            handles[label] = handles.pop(label)
    for panel in axes.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2)


def _line(panel, x: Sequence[float], spreads: Sequence[Spread], mark, label: str, **more) -> None:
    line_with_band(panel, x, *zip(*spreads, strict=True), mark, label=label, **more)


def add_blocks(report: Report, name: str, passes: Sequence[Pass]) -> None:
    """Adds the figure of ||dL/dS^l|| over the blocks l, relative to the last block, with one panel for each setting.

    Args:
        report: the report.
        name: of the figure: ``zero-init``, ``default`` or ``blocks``.
        passes: networks of one depth, for all settings and seeds.
    """
    settings, labels = settings_of(passes), _labels(passes)
    foreseen = any(value is not None for p in passes for value in p.predicted)
    with _grid(len(settings), PAGE, sharey=False) as (figure, axes):
        for panel, setting in zip(axes.flat, settings, strict=False):
            for label, mark in zip(labels, MARKS, strict=False):
                of_seeds = [p for p in passes if p.setting == setting and p.label == label]
                index = range(1, len(of_seeds[0].blocks) + 1)
                every = max(1, len(index) // 8)
                relative = [[quotient(b.norm, p.blocks[-1].norm) for b in p.blocks] for p in of_seeds]
                spreads = [Spread.of(values) for values in zip(*relative, strict=True)]
                _line(panel, index, spreads, mark, label, markevery=(every // 2, every))
                relative = [[quotient(x, p.blocks[-1].norm) for x in p.predicted] for p in of_seeds]
                spreads = [Spread.of(values) for values in zip(*relative, strict=True)]
                if foreseen:
                    means = [s.mean for s in spreads]
                    panel.plot(index, means, color="black", ls=":", lw=1.3, zorder=3, label=_PREDICTION)
                for i, block in enumerate(of_seeds[0].blocks):
                    if block.downsample:
                        panel.axvline(i + 1, color="0.5", ls="-", lw=0.4, zorder=0, label=_DOWNSAMPLE)
            panel.locator_params(axis="x", nbins=4, integer=True)
        _finish(figure, axes, settings, "block $l$", r"$\|\partial L/\partial S^l\|$ / that of the last block")
        report.figure(name, figure, _caption_of_blocks(name, passes, foreseen))


_STATES = {
    "zero-init": "with zero_init_residual",
    "default": "as initialised by default",
    "blocks": "with the weights of the source",
}


def _caption_of_blocks(name: str, passes: Sequence[Pass], foreseen: bool) -> str:
    models = " and ".join(dict.fromkeys(p.model for p in passes))
    caption = (
        f"Norm of the gradient at the input S^l of each block of {models}, {_STATES[name]}. The input of the network "
        "is on the left; each curve is divided by its value at the last block (no unit, logarithmic). a = Theta'(1 - "
        f"V_th) and b = Theta'(0 - V_th) are the factors of equation S2.{_seeds_in_words(passes)}"
    )
    if any(block.downsample for p in passes for block in p.blocks):
        caption += " Vertical grey lines mark the blocks with downsample. Each panel has its own scale."
    if foreseen:
        caption += (
            " Black dotted curves: equation S4 (SEW: equation 9) from the norm of the gradient that was measured "
            "at the end of each row of identity blocks."
        )
    return caption


def _seeds_in_words(passes: Sequence[Pass]) -> str:
    seeds = len({p.seed for p in passes})
    return f" Geometric mean over {seeds} seeds; the band is from the least to the greatest." if seeds > 1 else ""


def add_depths(report: Report, passes: Sequence[Pass]) -> None:
    """Adds the figure of the ratio of first to last block over the depth, and its numbers as a table.

    Args:
        report: the report.
        passes: all networks.
    """
    settings, depths = settings_of(passes), sorted({p.depth for p in passes})
    lines = [(label, zero_init) for zero_init in (True, False) for label in _labels(passes)]
    rows = []
    with _grid(len(settings), COLUMN, sharey=True) as (figure, axes):
        for panel, setting in zip(axes.flat, settings, strict=False):
            for (label, zero_init), mark in zip(lines, MARKS, strict=False):
                spreads = [
                    Spread.of(
                        [
                            p.ratio
                            for p in passes
                            if (p.label, p.depth, p.zero_init, p.setting) == (label, depth, zero_init, setting)
                        ]
                    )
                    for depth in depths
                ]
                title = f"{label}, {'zero init' if zero_init else 'default'}"
                _line(panel, range(len(depths)), spreads, mark, title)
                rows.append([setting.words(), title, *(f"{s.mean:.3g}" for s in spreads)])
            panel.set_xticks(range(len(depths)), list(map(str, depths)), rotation=90 if len(depths) > 3 else 0)
        _finish(figure, axes, settings, "depth / layers", "norm at the first block / at the last block")
        report.figure(
            "depths",
            figure,
            "||dL/dS^l|| at the first block divided by ||dL/dS^l|| at the last block, against the depth of the network "
            "(no unit, logarithmic; depths at even distances): below 1 the gradient shrinks on its way to the input, "
            f"above 1 it grows. zero init: with zero_init_residual; default: without.{_seeds_in_words(passes)}",
        )
    report.say(
        "||dL/dS^l|| at the first block divided by ||dL/dS^l|| at the last block, geometric mean over the seeds:"
    )
    report.show(["setting", "network", *map(str, depths)], rows)
