"""The exponential moving average of the weights."""

import copy
from itertools import chain

import torch
from torch import nn


class Average(nn.Module):
    """An exponential moving average of a model's parameters and batch-norm statistics.

    After each optimizer step, ``e <- d e + (1 - d) w``; the first step sets ``e = w``. Integer counters are copied.
    torch's ``AveragedModel`` copies a counter to the GPU on each update, so the host would wait for the GPU; this class
    does not.

    Args:
        model: the model with the weights ``w``. The average starts as a copy of it, on the same device.
        decay: ``d`` in [0, 1].

    Attributes:
        module: the network with the weights ``e``.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        # The counter is on the host. It has the name that torch's AveragedModel uses, which readers of files know.
        self.register_buffer("n_averaged", torch.tensor(0))

    def update(self, model: nn.Module) -> None:
        """Updates the average with the present weights of ``model``."""
        self.blend(model, self.is_new())
        self.n_averaged += 1

    def is_new(self) -> bool:
        """Returns whether there was no update yet."""
        return not self.n_averaged

    @torch.no_grad()
    def blend(self, model: nn.Module, first: bool) -> None:
        """Does the part of :meth:`update` that a CUDA graph can repeat: all but counting. ``first``: it is the first
        update."""
        of_average, of_model = (list(chain(m.parameters(), m.buffers())) for m in (self.module, model))
        averaged = [(e, w) for e, w in zip(of_average, of_model, strict=True) if e.is_floating_point()]
        for e, w in zip(of_average, of_model, strict=True):
            if not e.is_floating_point():
                e.copy_(w)
        share = 1.0 if first else 1 - self.decay
        torch._foreach_lerp_([e for e, _ in averaged], [w for _, w in averaged], share)
