"""Membrane potentials and raster plots of one layer as figures of a report."""

import math
import re
from bisect import bisect_left
from typing import NamedTuple

import torch

from sewsnn.analysis.potentials import Recording
from sewsnn.experiments.drawing import MARKS, drawing
from sewsnn.experiments.report import Report

_ROWS = 200  # neurons in a raster plot
_PANELS = 6  # neurons in one figure
_RASTER_POINTS = 130  # height of the rows of a raster plot in points, about 1.8 inches
_VECTORS = 20_000  # spikes of a raster plot above which an SVG file holds them as an image


class Place(NamedTuple):
    """A neuron of a layer: its index among the neurons of the layer, and its channel, row and column."""

    index: int
    channel: int
    y: int
    x: int

    def __str__(self) -> str:
        return f"channel {self.channel}, y {self.y}, x {self.x}"


class Layer:
    """The recording of one layer for one sample, with the neurons in a row: all sequences are ``[T, neurons]``."""

    def __init__(self, name: str, recording: Recording):
        self.name, self.recording = name, recording
        self.shape = _grid(recording.s_seq.shape[2:])
        sequences = (recording.x_seq, recording.h_seq, recording.v_seq, recording.s_seq)
        self.x, self.h, self.v, self.s = (t[:, 0].flatten(1).double().cpu() for t in sequences)
        self.threshold = recording.threshold[0].flatten().double().cpu()
        self.T, self.neurons = self.s.shape
        self.steps = self.s.count_nonzero(0)  # time-steps in which each neuron fired

    def place(self, index: int) -> Place:
        """The channel, row and column of a neuron."""
        _, height, width = self.shape
        return Place(index, index // (height * width), index // width % height, index % width)

    def chosen(self, number: int) -> list[Place]:
        """The neurons whose potential is drawn: at even quantiles of the spike count among those that fired, but not in
        every time-step; if these are too few, also among those that fired in every time-step. In a silent layer: those
        whose potential came closest to the threshold."""
        if not self.steps.any():
            distance = (self.threshold - self.h).min(0).values
            return [self.place(i) for i in sorted(distance.argsort(stable=True)[:number].tolist())]
        counts = self.s.sum(0)
        order = counts.argsort(stable=True)
        some = order[(self.steps[order] > 0) & (self.steps[order] < self.T)]
        if len(some) < number:
            some = torch.cat([some, order[self.steps[order] == self.T][: number - len(some)]])
        number = min(number, len(some))
        return [self.place(int(some[int((i + 0.5) / number * len(some))])) for i in range(number)]

    def subset(self) -> list[Place]:
        """At most 200 neurons at even distances, sorted by channel."""
        number = min(self.neurons, _ROWS)
        return [self.place(i * self.neurons // number) for i in range(number)]


def draw_potentials(report: Report, layer: Layer, places: list[Place], what: str) -> None:
    """Adds figures of the membrane potential over time, one panel for each neuron.

    Args:
        report: takes the figures.
        layer: the layer.
        places: the neurons.
        what: the sample, for the caption.
    """
    parts = [places[i : i + _PANELS] for i in range(0, len(places), _PANELS)]
    for number, part in enumerate(parts, 1):
        with drawing(len(part), height=0.72 + 0.95 * len(part), sharex=True) as (figure, axes):
            handles = {}
            for axis, place in zip(axes[:, 0], part, strict=True):
                handles |= _draw_neuron(axis, layer, place)
            _steps(axes[-1, 0], layer.T, first=0)
            if len(part) > 1:
                figure.supylabel("membrane potential (dimensionless)", fontsize=7.5)
            else:
                axes[0, 0].set_ylabel("membrane potential\n(dimensionless)")
            figure.legend(handles.values(), handles, loc="outside upper center", ncols=2, handlelength=2.2)
            report.figure(
                f"potential-{_file_name(layer.name)}" + (f"-{number}" if len(parts) > 1 else ""),
                figure,
                f"Membrane potential of neurons in layer {layer.name}, {what}. The line rises or falls from v[t-1] to "
                "h[t] with the input of time-step t; where the neuron fires, the reset then takes it to v[t]. At t = 0 "
                "the neuron is at rest.",
            )


def _draw_neuron(axis, layer: Layer, place: Place) -> dict:
    """Draws one neuron and returns the entries of the legend."""
    h, v, s = (sequence[:, place.index].tolist() for sequence in (layer.h, layer.v, layer.s))
    threshold, start, times = float(layer.threshold[place.index]), layer.recording.v_start, range(1, layer.T + 1)
    fired = [t for t in times if s[t - 1]]
    path = [(0, start), *((t, potential[t - 1]) for t in times for potential in (h, v))]
    before, after = MARKS[0], MARKS[1]
    points = {"linestyle": "none", "markersize": 3 if layer.T <= 20 else 30 / max(layer.T, 30) + 0.5}
    handles = {}
    axis.plot(*zip(*path, strict=True), color=before.color, linewidth=0.8)
    handles["h[t], before firing"] = axis.plot(times, h, **before.line(**points))[0]
    if fired:
        points |= {"markerfacecolor": "white"}
        handles["v[t], after reset"] = axis.plot(fired, [v[t - 1] for t in fired], **after.line(**points))[0]
    handles["threshold"] = axis.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    known = [value for value in (*h, *v, threshold, start) if math.isfinite(value)]
    low, high = min(known), max(known)
    room = (high - low) or 1.0
    axis.set_ylim(low - 0.1 * room, high + 0.36 * room)
    if fired:
        top = [high + 0.22 * room] * len(fired)
        handles["spike"] = axis.plot(fired, top, color="black", marker="|", markersize=5, linestyle="none")[0]
    axis.set_title(str(place), loc="left", pad=2)
    axis.grid(False, axis="x")
    return handles


def draw_raster(report: Report, layer: Layer, what: str) -> None:
    """Adds a raster plot: neurons against time, at most 200 of them.

    Args:
        report: takes the figure.
        layer: the layer.
        what: the sample, for the caption.
    """
    places = layer.subset()
    s = layer.s[:, [place.index for place in places]]  # [T, rows]
    t, row = s.nonzero().unbind(1)
    with drawing(height=2.3) as (figure, axes):
        axis = axes[0, 0]
        if len(row):
            width = min(0.8 * _RASTER_POINTS / len(places), 8.0)
            lines = axis.hlines(row.numpy(), t.numpy() + 0.6, t.numpy() + 1.4, linewidth=width, colors="black")
            lines.set_capstyle("butt")
            lines.set_rasterized(len(row) > _VECTORS)
        else:
            axis.text(0.5, 0.5, "no spikes", transform=axis.transAxes, ha="center", va="center")
        axis.set_ylim(-0.5, len(places) - 0.5)
        _channels(axis, places)
        axis.grid(False)
        _steps(axis, layer.T, first=1)
        drawn = f"all {layer.neurons:,}"
        if len(places) < layer.neurons:
            drawn = f"{len(places)} of {layer.neurons:,}, at even distances"
        silent = "" if layer.steps.any() else " No neuron of this layer fired."
        report.figure(
            f"raster-{_file_name(layer.name)}",
            figure,
            f"Spikes of neurons in layer {layer.name}, {what}. One row for each neuron ({drawn}), sorted by channel, "
            f"row and column of the feature map; a bar is a spike.{silent}",
        )


def _channels(axis, places: list[Place]) -> None:
    """The axis of the rows of a raster plot, with ticks at round numbers of channels."""
    channels = [place.channel for place in places]
    stride = _stride(channels[-1] + 1, 7)
    marks = range(0, channels[-1] + 1, stride)
    axis.set_yticks([bisect_left(channels, channel) for channel in marks], list(map(str, marks)))
    axis.set_ylabel("channel of the neuron")


def _steps(axis, T: int, first: int) -> None:
    """The axis of time, with ticks at whole time-steps."""
    stride = _stride(T, 8)
    axis.set_xticks([t for t in range(first, T + 1) if t % stride == 0])
    axis.set_xlim(first - (0.5 if first else 0.02 * T), T + 0.5)
    axis.set_xlabel("time-step t")


def _stride(count: int, most: int) -> int:
    """The distance of at most ``most`` ticks at round numbers below ``count``."""
    strides = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    return next(stride for stride in strides if count / stride <= most)


def _file_name(layer: str) -> str:
    return re.sub(r"[^\w.-]", "_", layer) or "network"


def _grid(sizes: torch.Size) -> tuple[int, int, int]:
    """Channels, rows and columns of a layer ``[C, ...]``; without space 1 row and 1 column."""
    space = sizes[1:]
    return sizes[0], math.prod(space[:-1]), space[-1] if space else 1
