"""What deferred results stand for: the call of a batch norm (:class:`NormCall`), or its :class:`Sum` with a shortcut.

A source is *watched* if its values exist from the start, computed by the original operations. Then only a neuron may
leave them aside. Otherwise it is deferred: the values are computed when somebody needs them, once, unless the op of a
neuron has returned them before. A batch norm defers a call only if a neuron has joined an earlier one, and nobody else
has used the values then (convert/norms.py).
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sewsnn.layers.norm import Normalisation, for_one_call, normalisation, tensors_of, update_running
from sewsnn.ops import bn as native
from sewsnn.ops.reference import state_dtype

if TYPE_CHECKING:
    from sewsnn.convert.deferred import Deferred

_numbers = count()

#: view functions in their order, each with the arguments after the tensor
Steps = tuple[tuple[Callable, tuple, dict], ...]


def follow(steps: Steps, value: Tensor) -> Tensor:
    """Takes the steps."""
    for function, args, kwargs in steps:
        value = function(value, *args, **kwargs)
    return value


def _versions(tensors) -> list[int]:
    return [-1 if tensor is None else tensor._version for tensor in tensors]


@dataclass
class Record:
    """What became of a call of a batch norm. The norm keeps the record of its last call.

    Attributes:
        joined: a neuron has joined it.
        touched: somebody else has used its values.
    """

    joined: bool = False
    touched: bool = False


class Source:
    """The values that some Deferred tensors stand for.

    Attributes:
        number: sources are numbered in the order in which they were made.
        derived: the Deferred tensors that depend on the values.
        spent: a neuron has joined it.
        touched: somebody else has used its values.
        watched: the values exist from the start.
        call: the call of the batch norm.
        inputs: what gradients reach: z, weight and bias of the norm, and the shortcut or None.
        grad: gradients were enabled when the source was made.
        needs_grad: one of the inputs requires a gradient.
    """

    call: "NormCall"
    inputs: tuple[Tensor | None, ...]
    needs_grad: bool

    def __init__(self, value: Tensor | None):
        self.number = next(_numbers)
        self.derived: list[weakref.ref] = []
        self.spent = self.touched = False
        self.grad = torch.is_grad_enabled()
        self.watched = value is not None
        self._value, self._raw = value, None

    @property
    def computed(self) -> bool:
        """Whether the values exist."""
        return self._value is not None

    def value(self) -> Tensor:
        """The values, with an autograd graph if gradients were enabled when the source was made."""
        if self._value is None:
            # As at the time of the call. inference_mode first: it sets the mode of gradients as well.
            with torch.inference_mode(False), torch.set_grad_enabled(self.grad):
                self._value = self._compute()
        return self._value

    def set_value(self, value: Tensor) -> None:
        """Lets the result of an op be the values."""
        self._value = value

    def touch(self) -> None:
        """Notes that somebody other than a neuron uses the values."""
        self.touched = True

    def unshare(self) -> None:
        """Copies the values if an op has kept them for backward: they are about to be changed."""
        if self.spent and self._value is not None and not self.watched:
            with torch.set_grad_enabled(self.grad):
                self._value = self._value.clone()
            for tensor in self.living():
                tensor.forget()

    def living(self) -> list["Deferred"]:
        """The tensors in ``derived`` that somebody still holds."""
        return [tensor for tensor in (ref() for ref in self.derived) if tensor is not None]

    def raw(self) -> Tensor:
        """The values without a graph, for code below autograd."""
        if self._value is not None:
            return self._value.detach()
        if self._raw is None:
            with torch.no_grad():
                self._raw = self.from_inputs(*self.inputs)
        return self._raw

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def from_inputs(self, z: Tensor, weight: Tensor | None, bias: Tensor | None, shortcut: Tensor | None) -> Tensor:
        """The values, computed from tensors in place of the inputs."""
        raise NotImplementedError


class NormCall(Source):
    """One call of a batch norm. A deferred call takes the statistics and updates the running statistics.

    Args:
        norm: a batch norm of :mod:`sewsnn.convert.norms`.
        z: its input.
        watched: the original forward computes the values.
    """

    def __init__(self, norm: nn.Module, z: Tensor, watched: bool):
        super().__init__(norm.original_forward(z) if watched else None)
        weight, bias, *running = tensors_of(norm)
        self.norm, self.z = norm, z
        self.record = norm.last_call = Record()
        self.inputs = (z, weight, bias, None)
        self.needs_grad = z.requires_grad or any(t is not None and t.requires_grad for t in (weight, bias))
        of_batch = norm.training or running[0] is None
        self._n = None if watched else _taken(norm, self._z_seq())
        self._read = (z, weight, bias, *(() if of_batch else running[:2]))
        self._read_versions = _versions(self._read)

    @property
    def call(self) -> "NormCall":
        return self

    @property
    def shape(self) -> torch.Size:
        return self.z.shape

    @property
    def n(self) -> Normalisation:
        """Statistics, weight and bias, as the ops take them.

        Raises:
            RuntimeError: the statistics of a watched call are not finite.
        """
        if self._n is None:
            self._n = normalisation(self.norm, self._z_seq(), 0)
        return self._n

    def _z_seq(self) -> Tensor:
        return self.z if self.norm.over_time else self.z.unsqueeze(0)

    def touch(self) -> None:
        super().touch()
        self.record.touched = True

    def changed(self) -> str:
        """Names what was changed in place since the call, so that no op can compute BN(z) any more; empty: nothing."""
        if _versions(self._read) == self._read_versions:
            return ""
        pairs = zip(_READ, _versions(self._read), self._read_versions, strict=False)
        return next(name for name, now, before in pairs if now != before)

    def check_unchanged(self) -> None:
        """Raises RuntimeError if BN(z) can no longer be computed."""
        if name := self.changed():
            raise RuntimeError(
                f"the result of {type(self.norm).__name__} {self.norm.place} is computed when it is first used, but "
                f"{name} was changed in place in the meantime: use the result before this change (for example by "
                ".clone()), or convert with from_spikingjelly(model, fuse=False)"
            )

    def _compute(self) -> Tensor:
        if not self.spent:
            self.touch()
        return self.from_inputs(*self.inputs)

    def from_inputs(self, z, weight, bias, shortcut):
        self.check_unchanged()
        n, state = self.n, self.n.statistics.dtype
        weight, bias = (None if t is None else t.to(state).contiguous() for t in (weight, bias))
        z_seq = z if self.norm.over_time else z.unsqueeze(0)
        options = native.Options(n.eps, native.NONE, 0, None)
        kept = {"training": n.training, "count": n.count, "group": n.group}
        y = native.bn_neuron(z_seq, None, n.statistics, weight, bias, None, options, **kept).out
        return y.reshape(z.shape)


_READ = ("its input", "its weight", "its bias", "its running mean", "its running variance")


def _taken(norm: nn.Module, z_seq: Tensor) -> Normalisation:
    """Takes the statistics of a batch and updates the running ones; their versions stay, as in torch's batch norm."""
    one_call = for_one_call(norm, state_dtype(z_seq.dtype))
    if one_call is not None:
        statistics = native.take_statistics(z_seq, one_call[2], 0)
        return Normalisation(statistics, *one_call[:2], norm.eps, True, z_seq.numel() / norm.num_features)
    n = normalisation(norm, z_seq, 0)
    running = tuple(t for t in (norm.running_mean, norm.running_var) if t is not None)
    with torch.autograd._unsafe_preserve_version_counter(running):
        update_running(norm, n)
    return n


class Sum(Source):
    """A deferred tensor plus a shortcut of the same shape. ``value``: the sum, if x is watched."""

    def __init__(self, x: "Deferred", shortcut: Tensor, value: Tensor | None):
        super().__init__(value)
        self.call = x.source.call
        reached = x.source.inputs[:3]
        if not self.call.grad:  # batch norm ran without gradients
            reached = tuple(None if t is None else t.detach() for t in reached)
        if value is None and shortcut.requires_grad:
            shortcut = shortcut.view_as(shortcut)  # with a graph of its own: somebody may detach the shortcut in place
        self.inputs = (*reached, shortcut)
        self.needs_grad = (self.call.grad and x.source.needs_grad) or shortcut.requires_grad
        self._source, self._steps, self._shortcut = x.source, x.steps, shortcut
        self._version = shortcut._version

    @property
    def shape(self) -> torch.Size:
        return self._shortcut.shape

    def changed(self) -> str:
        """Names what was changed in place since the sum, so that no op can compute it any more; empty: nothing."""
        if self._shortcut._version != self._version:
            return "the shortcut"
        return self.call.changed()

    def check_unchanged(self) -> None:
        """Raises RuntimeError if the sum can no longer be computed."""
        if self._shortcut._version != self._version:
            raise RuntimeError(
                "a batch norm's result plus a shortcut is computed when it is first used, but the shortcut was changed "
                "in place in the meantime: use the sum before this change, or convert with "
                "from_spikingjelly(model, fuse=False)"
            )
        self.call.check_unchanged()

    def _compute(self) -> Tensor:
        self.check_unchanged()
        return follow(self._steps, self._source.value()) + self._shortcut

    def from_inputs(self, z, weight, bias, shortcut):
        self.check_unchanged()
        return follow(self._steps, self._source.from_inputs(z, weight, bias, None)) + shortcut
