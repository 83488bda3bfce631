"""The checks of a node's settings, which run at each assignment: an nn.Parameter in place of a number would silently
never be trained."""

import numbers
from collections.abc import Callable

import torch

from sewsnn.ops.load import check_backend
from sewsnn.ops.spec import check_number, check_tau, flag
from sewsnn.spike_count import MultiLevelSpikeCount

Check = Callable[[str, object], object]  # from a setting's name and value to the value that the node keeps


def number(name: str, value) -> float:
    """A finite number."""
    check_number(name, value)
    return value if type(value) in (int, float) or torch.compiler.is_compiling() else float(value)


def positive(name: str, value) -> float:
    """A finite number above 0, also in float32."""
    check_number(name, value)
    if value < 2.0**-149:
        raise ValueError(f"{name} must be above 0, got {value}{', which float32 rounds to 0' if value > 0 else ''}")
    return number(name, value)


def tau(name: str, value) -> float:
    """A time constant of at least 1 time-step."""
    check_tau(value, name)
    return number(name, value)


def channels(name: str, value) -> int | None:
    """A number of channels, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int or None, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def one_of(*choices: str) -> Check:
    """One of several words."""

    def checked(name: str, value) -> str:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value

    return checked


def surrogate(name: str, value):
    """A function that is the spike."""
    if isinstance(value, MultiLevelSpikeCount):
        raise TypeError(f"{name} must return spikes of 0 or 1: MultiLevelSpikeCount is for ILIFNode")
    if not callable(value):
        raise TypeError(
            f"{name} must be one of sewsnn.surrogate, or callable on h - v_threshold, got {type(value).__name__}"
        )
    return value


#: the settings that several nodes have
SETTINGS: dict[str, Check] = {
    "step_mode": one_of("m", "s"),
    "backend": lambda name, value: check_backend(value),
    "tau_grad": one_of("full", "frozen"),
    "detach_reset": flag,
    "decay_input": flag,
    "store_v_seq": flag,
    "store_v": flag,
    "surrogate_function": surrogate,
    "v_threshold": number,
    "v_reset": lambda name, value: None if value is None else number(name, value),
    "tau": tau,
}
