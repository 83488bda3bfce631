"""What deferred results are computed from: the call of a batch norm (:class:`NormCall`), or its sum with a shortcut.

A source takes the place of the operation that model code has called. It computes the values when somebody needs them,
once, unless the op of a neuron has returned them before.
"""

import weakref
from collections.abc import Callable
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


def _versions(tensors) -> list[int]:
    return [-1 if tensor is None else tensor._version for tensor in tensors]


class Source:
    """Something whose values are computed when they are first needed.

    Attributes:
        number: sources are numbered in the order in which they were made.
        derived: the Deferred tensors that depend on the values.
        spent: a neuron has used it in its op.
        call: the call of the batch norm.
        inputs: what gradients reach: z, weight and bias of the norm, and the shortcut or None.
        grad: gradients were enabled when the source was made.
        needs_grad: one of the inputs requires a gradient.
    """

    call: "NormCall"
    inputs: tuple[Tensor | None, ...]
    needs_grad: bool

    def __init__(self):
        self.number = next(_numbers)
        self.derived: list[weakref.ref] = []
        self.spent = False
        self.grad = torch.is_grad_enabled()
        self._value = self._raw = None

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

    def unshare(self) -> None:
        """Copies the values if an op has kept them for backward: they are about to be changed."""
        if self.spent and self._value is not None:
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
                self._raw = self._compute_raw()
        return self._raw

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def _compute_raw(self) -> Tensor:
        return self.from_inputs(*self.inputs)

    def from_inputs(self, z: Tensor, weight: Tensor | None, bias: Tensor | None, shortcut: Tensor | None) -> Tensor:
        """The values, computed from tensors in place of the inputs."""
        raise NotImplementedError


class NormCall(Source):
    """One call of a batch norm. It takes the statistics and updates the running statistics.

    Args:
        norm: a batch norm of :mod:`sewsnn.convert.norms`.
        z: its input.
        z_seq: z as the ops take it, ``[T, N, C, ...]``.
        undo: the call may become one of the original batch norm: remember the running statistics.

    Attributes:
        n: statistics, weight and bias, as the ops take them.
    """

    def __init__(self, norm: nn.Module, z: Tensor, z_seq: Tensor, undo: bool):
        super().__init__()
        weight, bias, *running = tensors_of(norm)
        self.norm, self.z = norm, z
        self.inputs = (z, weight, bias, None)
        self.needs_grad = z.requires_grad or any(t is not None and t.requires_grad for t in (weight, bias))
        self._before = None
        if undo and norm.training and norm.track_running_stats:
            self._before = [None if buffer is None else buffer.clone() for buffer in running]
        one_call = for_one_call(norm, state_dtype(z.dtype))
        if one_call is None:
            self.n = normalisation(norm, z_seq, 0)
            update_running(norm, self.n)
        else:
            statistics = native.take_statistics(z_seq, one_call[2], 0)
            self.n = Normalisation(statistics, *one_call[:2], norm.eps, True, z.numel() / norm.num_features)
        self._read = (z, weight, bias, *(() if self.n.training else running[:2]))
        self._read_versions = _versions(self._read)
        self._running, self._running_versions = running, _versions(running) if self._before else None

    @property
    def call(self) -> "NormCall":
        return self

    @property
    def shape(self) -> torch.Size:
        return self.z.shape

    def check_unchanged(self) -> None:
        """Raises RuntimeError if BN(z) can no longer be computed."""
        if _versions(self._read) == self._read_versions:
            return
        pairs = zip(_READ, _versions(self._read), self._read_versions, strict=False)
        name = next(name for name, now, before in pairs if now != before)
        raise RuntimeError(
            f"the result of {type(self.norm).__name__} {self.norm.place} is computed when it is first used, but "
            f"{name} was changed in place in the meantime: use the result before this change (for example by .clone()),"
            " or convert with from_spikingjelly(model, fuse=False)"
        )

    def _compute(self) -> Tensor:
        self.check_unchanged()
        before, self._before = self._before, None
        self.norm.note_computed(self.spent)
        if self.spent or (self.n.training and self.norm.training and before is None):
            return self.from_inputs(*self.inputs)
        if before is not None:
            if _versions(self._running) != self._running_versions:  # somebody has used the new running statistics
                return self.from_inputs(*self.inputs)
            with torch.no_grad():  # take the update back: the norm makes it again
                for buffer, old in zip(self._running, before, strict=True):
                    if buffer is not None:
                        buffer.copy_(old)
        return self.norm.original_forward(self.z)

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


class Sum(Source):
    """A deferred tensor plus a shortcut of the same shape."""

    def __init__(self, x: "Deferred", shortcut: Tensor):
        super().__init__()
        self.call, self.grad = x.source.call, x.source.grad and torch.is_grad_enabled()
        self.inputs = (*x.source.inputs[:3], shortcut)
        self.needs_grad = x.source.needs_grad or shortcut.requires_grad
        self._source, self._steps, self._shortcut = x.source, x.steps, shortcut
        self._version = shortcut._version

    @property
    def shape(self) -> torch.Size:
        return self._shortcut.shape

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


def follow(steps: Steps, value: Tensor) -> Tensor:
    for function, args, kwargs in steps:
        value = function(value, *args, **kwargs)
    return value
