"""The classes to which :func:`sewsnn.convert.from_spikingjelly` swaps batch norms: they defer their result.

A converted batch norm returns a :class:`sewsnn.convert.deferred.Deferred` where a converted neuron may join it in one
op. In all other calls its original forward runs.
"""

import sys

import torch
from torch import Tensor, nn

from sewsnn.convert import recorded  # noqa: F401  it tells Deferred which operations need no values
from sewsnn.convert.deferred import Deferred, used
from sewsnn.convert.observed import operators_are_observed
from sewsnn.convert.obstacles import own_dynamics, patched
from sewsnn.convert.sources import NormCall, Record
from sewsnn.layers import plan
from sewsnn.layers.norm import group_of, tensors_of
from sewsnn.ops.checks import DTYPES, backward_number
from sewsnn.ops.load import NATIVE_ERROR

#: after so many watched calls that no neuron joined, so many calls run as before the conversion
_MOST_MISSES, _PAUSE = 3, 100


class DeferringNorm:
    """A batch norm whose result may be a :class:`Deferred`. The class of an existing norm is swapped.

    It first watches what becomes of its results. If a neuron has joined a call, and nobody else has used its values, it
    defers the next ones. If somebody else uses the values of a deferred call, it stops.
    """

    place = ""  #: its name in the model
    values_wanted = False  #: somebody used the values of a call after a neuron had joined it
    last_call: Record | None = None
    _original: type  # the class before the conversion
    _defers = False
    _misses = 0  # watched calls that no neuron joined, one after the other
    _pause = 0  # calls that run as before the conversion

    def forward(self, x: Tensor) -> Tensor:
        """Batch norm, deferred where that is possible."""
        if torch.compiler.is_compiling():
            return self.original_forward(x)
        x = used(x)
        if type(x) is Tensor and not self._is_called_plainly() and self.may_be_skipped(x) and self._next_call():
            axis = 2 if self.over_time else 1
            call = NormCall(self, x, watched=not self._defers)
            return Deferred.of(call, (), x, axis, call.value() if call.watched else _result_like(x, axis))
        return self.original_forward(x)

    def original_forward(self, x: Tensor) -> Tensor:
        """The forward of the class before the conversion."""
        return self._original.forward(self, x)

    def _next_call(self) -> bool:
        """Learns from the last call. Returns whether the next one is watched or deferred."""
        last, self.last_call = self.last_call, None
        if last is not None and last.touched and self._defers:
            self._defers, self._pause = False, _PAUSE
        elif last is not None and last.joined and not last.touched:
            self._defers, self._misses = True, 0
        elif last is not None and not self._defers:
            self._misses += 1
            if last.touched or self._misses >= _MOST_MISSES:
                self._misses, self._pause = 0, _PAUSE
        if self._pause > 0:
            self._pause -= 1
            return False
        return True

    @property
    def over_time(self) -> bool:
        """Whether the input is ``[T, N, C, ...]``; otherwise it is ``[N, C, ...]``."""
        return getattr(self, "step_mode", "s") == "m"

    def may_be_skipped(self, x: Tensor) -> bool:
        """Returns whether an op may compute what a call with this input would compute."""
        axis = 2 if self.over_time else 1
        if x.dim() <= axis or x.shape[axis] != self.num_features or x.numel() == 0 or x.dtype not in DTYPES:
            return False
        if NATIVE_ERROR is not None or x.device.type not in _DEVICES or x.layout != torch.strided:
            return False
        if x.is_inference() or type(self.eps) is not float or type(self.momentum) not in (float, type(None)):
            return False
        weight, bias, mean, var, _ = tensors_of(self)
        if any(t is not None and (t.device != x.device or type(t) not in _TENSORS) for t in (weight, bias, mean, var)):
            return False
        if (self.training or mean is None) and x.numel() <= x.shape[axis] and group_of(self) is None:
            return False
        return x.dim() in self._dims

    def _is_called_plainly(self) -> bool:
        """Returns whether somebody must see the call itself."""
        if torch._C._get_tracing_state() is not None or not plan.may_skip_calls(None, None) or plan.is_altered(self):
            return True
        if backward_number() >= 0:
            return True  # activation checkpointing repeats a forward inside backward, and differentiates its result
        if torch.is_inference_mode_enabled() or operators_are_observed():
            return True  # tensors of inference mode do not tell whether they were changed
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return True  # activation checkpointing must find the same operations again
        return bool(torch._C._len_torch_function_stack()) and not _only_devices()

    @property
    def _dims(self) -> tuple[int, ...]:
        """The numbers of dimensions that the input may have."""
        flat = next(dims for kind, dims in _DIMS.items() if isinstance(self, kind))
        if not self.over_time:
            return flat
        if flat == (2, 3) and self._original.__module__ == _THEIR_LAYERS:  # 0.0.0.0.14
            return (4,)
        return tuple(1 + dims for dims in flat)

    def __reduce_ex__(self, protocol):
        return _rebuilt, (self._original,), {**self.__dict__, "last_call": None}


_DEVICES = ("cpu", "cuda")
_TENSORS = (Tensor, nn.Parameter)
_DIMS = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
    nn.SyncBatchNorm: tuple(range(2, 10)),
}
_THEIR_LAYERS = "spikingjelly.activation_based.layer"
_swapped: dict[type, type] = {}


def _result_like(x: Tensor, axis: int) -> Tensor:
    """A tensor with the strides that torch's batch norm gives its result: those of x, or contiguous."""
    flat = x if axis == 1 else x.flatten(0, 1)
    if x.is_contiguous() or (flat.dim() in (4, 5) and flat.movedim(1, -1).is_contiguous() and axis == 1):
        return x
    like = torch.empty(flat.shape, dtype=x.dtype, device="meta")
    if flat.dim() in (4, 5) and flat.movedim(1, -1).is_contiguous():
        like = torch.empty([flat.shape[0], *flat.shape[2:], flat.shape[1]], dtype=x.dtype, device="meta").movedim(-1, 1)
    return like if axis == 1 else like.unflatten(0, x.shape[:2])


def _only_devices() -> bool:
    from torch.overrides import _get_current_function_mode_stack  # not a public name
    from torch.utils._device import DeviceContext

    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())


def swapped(kind: type) -> type:
    """The class of the batch norms of class ``kind`` after the conversion. It has the same name."""
    found = _swapped.get(kind)
    if found is None:
        names = {"_original": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        found = _swapped[kind] = type(kind.__name__, (DeferringNorm, kind), names)
    return found


def _known() -> set[type]:
    """The classes that compute a plain batch norm."""
    theirs = sys.modules.get(_THEIR_LAYERS)
    return {*_DIMS} if theirs is None else {*_DIMS, theirs.BatchNorm1d, theirs.BatchNorm2d, theirs.BatchNorm3d}


def why_not(norm: nn.Module) -> str:
    """Why a batch norm does not defer its result; empty if it may."""
    kind = norm._original if isinstance(norm, DeferringNorm) else type(norm)
    known = _known()
    base = next((base for base in kind.__mro__ if base in known), None)
    if base is None:
        return f"sewsnn cannot fuse batch norms of class {kind.__module__}.{kind.__name__}"
    if own := own_dynamics(kind, base):
        return f"the class of the batch norm before it defines {own}"
    method = patched(norm)
    return f"the method {method} of the batch norm before it was replaced" if method else ""


def set_deferring(module: nn.Module, name: str, wanted: bool) -> None:
    """Lets a batch norm defer its results, or not any more. Other modules stay as they are."""
    if isinstance(module, DeferringNorm):
        for attribute in ("_defers", "_misses", "_pause", "last_call", "place", "values_wanted"):
            module.__dict__.pop(attribute, None)
        if type(module) is not swapped(module._original):  # somebody has derived a class, for example a parametrisation
            module._pause = 0 if wanted else sys.maxsize
            return
        module.__class__ = module._original
    if wanted and isinstance(module, nn.modules.batchnorm._NormBase) and not why_not(module):
        module.__class__ = swapped(type(module))
        module.place = name


def _rebuilt(kind: type) -> nn.Module:
    found = swapped(kind)
    return found.__new__(found)
