"""The classes to which :func:`sewsnn.convert.from_spikingjelly` swaps ``MaxPool2d``: they pool by sewsnn's op.

Values and gradients are torch's. The op keeps one byte for each window; torch keeps the input and eight bytes for each
window.
"""

import sys

import torch
from torch import Tensor, nn

from sewsnn.convert.observed import operators_are_observed
from sewsnn.convert.obstacles import own_dynamics
from sewsnn.layers.plan import may_skip_calls
from sewsnn.layers.pooling import same_order
from sewsnn.ops import max_pool as native

_THEIR_LAYERS = "spikingjelly.activation_based.layer"
_swapped: dict[type, type] = {}


class Pooling:
    """A ``MaxPool2d`` that pools by the op where it can. The class of an existing module is swapped."""

    _original: type  # the class before the conversion

    def forward(self, x: Tensor) -> Tensor:
        """Max pooling, as the class before the conversion computes it."""
        if torch.jit.is_scripting():
            settings = self.kernel_size, self.stride, self.padding, self.dilation
            return nn.functional.max_pool2d(x, *settings, self.ceil_mode, self.return_indices)
        else:  # noqa: RET505  torch.jit.script does not compile this branch
            window = None if torch.compiler.is_compiling() else self._window(x)
            return self._original.forward(self, x) if window is None else native.max_pool(x, window)

    def _window(self, x: Tensor) -> native.Window | None:
        """The windows, if the op can stand for this call; else None."""
        over_time = getattr(self, "step_mode", "s") == "m"
        if type(x) is not Tensor or x.dim() != (5 if over_time else 4) or torch._C._len_torch_function_stack():
            return None
        if torch._C._get_tracing_state() is not None or operators_are_observed() or not may_skip_calls(None, None):
            return None
        window = native.Window.of_module(self)
        return window if window is not None and native.runs(x, window) and same_order(x) else None

    def __reduce_ex__(self, protocol):
        return _rebuilt, (self._original,), self.__getstate__()


def _known() -> tuple[type, ...]:
    """The classes that compute a plain max pooling."""
    theirs = getattr(sys.modules.get(_THEIR_LAYERS), "MaxPool2d", None)
    return (nn.MaxPool2d,) if theirs is None else (theirs, nn.MaxPool2d)


def set_pooling(module: nn.Module, wanted: bool) -> None:
    """Lets a ``MaxPool2d`` pool by the op, or not any more. Other modules stay as they are."""
    if isinstance(module, Pooling):
        module.__class__ = module._original
    if not wanted or not isinstance(module, nn.MaxPool2d):
        return
    base = next(known for known in _known() if isinstance(module, known))
    if "forward" not in module.__dict__ and not own_dynamics(type(module), base):
        module.__class__ = _swapped_class(type(module))


def _swapped_class(kind: type) -> type:
    """The class of the modules of class ``kind`` after the conversion. It has the same name."""
    found = _swapped.get(kind)
    if found is None:
        names = {"_original": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        found = _swapped[kind] = type(kind.__name__, (Pooling, kind), names)
    return found


def _rebuilt(kind: type) -> nn.Module:
    found = _swapped_class(kind)
    return found.__new__(found)
