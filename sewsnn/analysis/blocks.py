"""The firing rates of the blocks of a network: :func:`block_rates`."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sewsnn.analysis.watching import evaluating, rest
from sewsnn.models.blocks import Block


class BlockRate(NamedTuple):
    """The firing rates of one block; every rate is a mean over samples, time-steps and neurons.

    Attributes:
        name: its name in ``model.named_modules()``.
        S: spikes per neuron and time-step of its input S^l.
        A: those of A^l, the output of the last neuron of the branch; None for a Spiking block, whose last neuron gives
            O^l.
        O: those of its output O^l, before a pooling; above 1 where ADD adds spikes.
        active: share of O^l that is not 0.
    """

    name: str
    S: float
    A: float | None
    O: float  # noqa: E741
    active: float


def blocks_of(model: nn.Module) -> list[tuple[str, Block]]:
    """Returns name and module of every block, in the order of the network."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]


def last_neuron(block: Block) -> nn.Module:
    """Returns the last neuron of the branch, whose output is A^l (in a Spiking block O^l)."""
    return getattr(block, f"sn{block.convs}")


def has_own_A(block: Block) -> bool:
    """Returns whether A^l is the output of the last neuron; in a Spiking block that is O^l."""
    return block.style.residual != "spiking"


class _Sum:
    """Sums of the values of a layer, on its device."""

    def __init__(self):
        self.spikes: Tensor | float = 0.0
        self.active: Tensor | int = 0
        self.elements = 0

    def add(self, s_seq: Tensor) -> None:
        self.spikes = self.spikes + s_seq.sum(dtype=torch.float64)
        self.active = self.active + s_seq.count_nonzero()
        self.elements += s_seq.numel()

    def rate(self) -> float:
        return float(self.spikes) / self.elements


@torch.no_grad()
def block_rates(model: nn.Module, batches: Iterable[Tensor]) -> list[BlockRate]:
    """Measures the firing rate of S^l, A^l and O^l in every block over all batches, in evaluation mode.

    The rate of a tensor is sum(spikes) / (number of neurons * time-steps * samples). The sums are exact. The blocks run
    without the fused op that joins A^l and the shortcut, since that op does not write A^l. The model is restored
    afterwards.

    Args:
        model: a network of :mod:`sewsnn.models`.
        batches: inputs ``[N, C, H, W]`` or ``[T, N, C, H, W]``.

    Returns:
        One :class:`BlockRate` for each block, in the order of the network.

    Raises:
        ValueError: there is no block, or no batch.

    Source: supplement, A.3 and Fig. S2.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> rates = block_rates(net, [torch.rand(2, 3, 32, 32)])
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no blocks of sewsnn.models")
    sums = {name: (_Sum(), _Sum(), _Sum()) for name, _ in blocks}

    def of_block(name):
        def hook(module, inputs, o_seq):
            sums[name][0].add(inputs[0])
            sums[name][2].add(o_seq)

        return hook

    with evaluating(model) as hooks:
        for name, block in blocks:
            hooks.append(block.register_forward_hook(of_block(name)))
            if has_own_A(block):
                hook = last_neuron(block).register_forward_hook(lambda m, x, a_seq, name=name: sums[name][1].add(a_seq))
                hooks.append(hook)
        for x in batches:
            rest(model, whole_sequences=True)
            model(x)
    found = []
    for name, _ in blocks:
        s, a, o = sums[name]
        if not o.elements:
            raise ValueError("batches is empty: there is nothing to measure")
        found.append(BlockRate(name, s.rate(), a.rate() if a.elements else None, o.rate(), int(o.active) / o.elements))
    return found
