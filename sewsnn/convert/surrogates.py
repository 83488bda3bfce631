"""SpikingJelly's surrogate functions as those of sewsnn."""

import numbers
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sewsnn import surrogate
from sewsnn.layers.plan import has_hooks
from sewsnn.ops.checks import is_finite
from sewsnn.spike_count import MOST

#: methods of a surrogate that a script may replace on the object
_METHODS = {"forward", "spiking_function", "primitive_function", "backward", "__call__"}


class _Known(NamedTuple):
    numbers: tuple[str, ...]  # attributes of SpikingJelly's surrogate
    make: Callable  # our surrogate with these numbers
    counts: bool  # it counts spikes: the firing function of ILIFNode


def _alpha(make: Callable) -> _Known:
    return _Known(("alpha",), lambda alpha: make(float(alpha)), False)


_SAME_ALPHA = ("ATan", "Erf", "PiecewiseExp", "PiecewiseQuadratic", "Sigmoid", "SoftSign", "SuperSpike")
_BY_NAME = {
    **{name: _alpha(getattr(surrogate, name)) for name in _SAME_ALPHA},
    "Rect": _alpha(lambda alpha: surrogate.Rectangular(1 / alpha)),
    "MultiLevelSpikeCount": _Known(
        ("max_spike_count", "grad_min", "grad_max"),
        lambda D, lower, upper: surrogate.MultiLevelSpikeCount(D, (lower, upper)),
        True,
    ),
}
#: by exact type
_KNOWN: dict[type, _Known] = {}


def register(theirs: ModuleType) -> None:
    """Makes the surrogates of a module of SpikingJelly known. Not every version has all of them."""
    _KNOWN.update({getattr(theirs, name): known for name, known in _BY_NAME.items() if hasattr(theirs, name)})


def is_number(value) -> bool:
    """Returns whether a setting is a finite number."""
    # The comparison of types comes first for speed: every call of a neuron runs this check.
    number = type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    return number and is_finite(value)


def named(value) -> str:
    """A setting as the report shows it."""
    return f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)


def obstacle(function: nn.Module, counts: bool) -> str | None:
    """Why sewsnn has no such surrogate; None if it has.

    Args:
        function: SpikingJelly's surrogate.
        counts: the neuron needs one that counts spikes (ILIFNode).
    """
    known = _KNOWN.get(type(function))
    if known is None or known.counts != counts:
        return f"sewsnn has no surrogate like {type(function).__module__}.{type(function).__name__} for this neuron"
    if not function.spiking:
        return "surrogate_function.spiking is False: the node does not output spikes"
    if has_hooks(function):
        return "surrogate_function has hooks"
    if not _METHODS.isdisjoint(vars(function)):
        return "a method of surrogate_function was replaced"
    if counts:
        return _no_count(function.max_spike_count, function.grad_min, function.grad_max)
    alpha = _number(function.alpha)
    if not is_number(alpha) or alpha <= 0:
        return f"surrogate_function.alpha is {named(alpha)}, not a positive, finite number"
    return None


def _number(value):
    """A setting; in 0.0.0.0.4, alpha is a buffer with one number."""
    one = isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad
    return float(value) if one and not torch.compiler.is_compiling() else value


def _no_count(D, lower, upper) -> str | None:
    if isinstance(D, bool) or not isinstance(D, numbers.Integral) or not 1 <= D <= MOST:
        return f"surrogate_function.max_spike_count is {named(D)}, not an int from 1 to {MOST}"
    for name, value in (("grad_min", lower), ("grad_max", upper)):
        if not is_number(value):
            return f"surrogate_function.{name} is {named(value)}, not a finite number"
    return f"surrogate_function.grad_min is {lower}, above grad_max, {upper}" if lower > upper else None


def values_of(function) -> tuple | None:
    """The type and the present numbers of a surrogate, to compare them with those of the last call; None: it is none
    of the usual ones."""
    known = _KNOWN.get(type(function))
    if known is None:
        return None
    attributes = vars(function)
    if attributes.get("spiking") is not True or has_hooks(function) or not _METHODS.isdisjoint(attributes):
        return None
    return type(function), *[attributes.get(name) for name in known.numbers]


def numbers_of(function: nn.Module) -> tuple:
    """The present numbers of a surrogate that has no obstacle."""
    return tuple([_number(getattr(function, name)) for name in _KNOWN[type(function)].numbers])


def ours(function: nn.Module) -> Callable:
    """The surrogate of sewsnn that computes the same as one that has no obstacle."""
    return _KNOWN[type(function)].make(*numbers_of(function))
