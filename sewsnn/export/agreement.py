"""Compares two networks: their spikes layer by layer, and their logits."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sewsnn.neuron import BaseNode

_TERMS = 2048  # terms of the longest sum behind a logit: the features of the widest network


class Run(NamedTuple):
    """The result of one call.

    Attributes:
        output: the network's output.
        spikes: the output of each neuron layer, in the order of the calls; None: not seen.
    """

    output: Tensor
    spikes: list[Tensor] | None


def nodes_of(model: nn.Module) -> list[BaseNode]:
    """The neuron layers of ``model``."""
    return [module for module in model.modules() if isinstance(module, BaseNode)]


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Run:
    """Calls ``model`` twice and returns its output and spikes.

    The spikes are those of the second call, in which the modules run one by one. A layer's spikes are those of its last
    call in it.
    """
    output = model(x)
    seen: list[Tensor] = []
    hooks = [node.register_forward_hook(lambda _, __, s: seen.append(s)) for node in nodes_of(model)]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return Run(output, [s.detach().cpu() for s in seen])


@dataclass(frozen=True)
class Agreement:
    """How far two runs agree.

    Attributes:
        difference: largest difference of two logits in the same place. Default 0.
        largest: largest absolute logit. Default 0.
        eps: machine epsilon of the logits' dtype. Default: that of float32.
        spikes: number of values that the neuron layers returned, silence (0) included. Default 0.
        flipped: number of these values that differ. Default 0.
        layers: number of neuron layers that were compared; 0 (default): only the logits were compared.
        fired: number of these values that are not 0. Default 0.
        first: the first layer whose spikes differ, counted from 1, and the share of its spikes that differ. Default
            None.
        shape: description of a difference of shapes. Default None.
    """

    difference: float = 0.0
    largest: float = 0.0
    eps: float = torch.finfo(torch.float32).eps
    spikes: int = 0
    flipped: int = 0
    layers: int = 0
    fired: int = 0
    first: tuple[int, float] | None = None
    shape: str | None = None

    def problem(self, max_flipped: float) -> str | None:
        """Describes why the two runs do not agree.

        Args:
            max_flipped: largest share of different spikes that is allowed in the first layer that differs.

        Returns:
            The reason; None if they agree up to rounding.
        """
        if self.shape:
            return self.shape
        if self.first and not self.first[1] <= max_flipped:
            layer, share = self.first
            return (
                f"{self.flipped:,} of {self.spikes:,} spikes differ; the first layer that differs is neuron layer "
                f"{layer}, in a share of {share:.2g} of its spikes (max_flipped allows {max_flipped:g})"
            )
        limit = min(_TERMS * self.eps, 0.05) * max(1.0, self.largest)
        if not self.flipped and not self.difference <= limit:  # NaN is no agreement
            return f"logits differ by {self.difference:.3g}, more than rounding ({limit:.2g})"
        if not self.difference < float("inf"):
            return f"logits differ by {self.difference}"
        return None

    def joined(self, other: "Agreement") -> "Agreement":
        """The agreement over both pairs of runs.

        Args:
            other: the agreement of another pair of runs.

        Returns:
            The sums of the counts, and the larger differences.
        """
        firsts = [a.first for a in (self, other) if a.first]
        return Agreement(
            max(self.difference, other.difference),
            max(self.largest, other.largest),
            self.eps,
            self.spikes + other.spikes,
            self.flipped + other.flipped,
            self.layers,
            self.fired + other.fired,
            max(firsts, key=lambda first: first[1]) if firsts else None,
        )

    def __str__(self) -> str:
        logits = f"largest difference of a logit {self.difference:.2g} (the largest is {self.largest:.3g})"
        if not self.layers:
            return f"{logits}; spikes were not compared"
        silent = "; no neuron fires on the example, so this check proves little" if not self.fired else ""
        return (
            f"{self.flipped:,} of {self.spikes:,} spikes of {self.layers} layers differ (firing rate "
            f"{self.fired / self.spikes:.3f}), {logits}{silent}"
        )


def compare(expected: Run, actual: Run) -> Agreement:
    """Compares an expected run with an actual one."""
    a, b = expected.output, actual.output
    if a.shape != b.shape or a.dtype != b.dtype:
        return Agreement(shape=f"output {b.dtype} {list(b.shape)} instead of {a.dtype} {list(a.shape)}")
    difference = _largest((a.double() - b.double()).abs())
    largest, eps = _largest(a.double().abs()), torch.finfo(a.dtype).eps
    if expected.spikes is None or actual.spikes is None:
        return Agreement(difference, largest, eps)
    if [s.shape for s in expected.spikes] != [s.shape for s in actual.spikes]:
        shapes = [[list(s.shape) for s in one.spikes] for one in (actual, expected)]
        return Agreement(shape=f"neuron layers of shapes {shapes[0]} instead of {shapes[1]}")
    numbers = flipped = fired = 0
    first = None
    for i, (s, t) in enumerate(zip(expected.spikes, actual.spikes, strict=True)):
        different = int((s != t).sum())
        if different and first is None:
            first = i + 1, different / s.numel()
        numbers += s.numel()
        flipped += different
        fired += int(s.count_nonzero())
    return Agreement(difference, largest, eps, numbers, flipped, len(expected.spikes), fired, first)


def _largest(x: Tensor) -> float:
    """The largest value of x; NaN if x contains one; 0 if x is empty."""
    return float(x.max()) if x.numel() else 0.0
