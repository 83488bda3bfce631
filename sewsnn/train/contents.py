"""What a checkpoint of a training run holds: each key, and what its value must be."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sewsnn.errors import CheckpointError, ConfigError, short
from sewsnn.train.config import Config, from_dict
from sewsnn.train.metrics import COLUMNS
from sewsnn.train.sums import START

_MOST_COUNT = 2**53  # that a float holds exactly


def check_content(content: Mapping[str, Any], path: str) -> None:
    """Compares the content of a checkpoint with :data:`CHECKS` and its entries with each other.

    Raises:
        CheckpointError: names the file, the key, what was expected and what is there.
    """
    known = CHECKS.keys() | {"format", "version", "versions"}
    if missing := CHECKS.keys() - content.keys():
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}")
    if others := [key for key in content if key not in known]:
        raise CheckpointError(f"{path} holds {short(others[0])}, which no checkpoint of this version has")
    for key, (expected, holds) in CHECKS.items():
        if not _asked(holds, content[key]):
            raise CheckpointError(f"{path}: {key} must be {expected}, got {short(_plain(content[key]))}")
    try:
        config = from_dict(content["config"], "config")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for what, holds in _BETWEEN.items():
        if not _asked(holds, content, config):
            raise CheckpointError(f"{path}: {what}")


def _asked(holds: Callable[..., bool], *values) -> bool:
    """Whether it holds; a value of a type that cannot even be asked does not."""
    try:
        return bool(holds(*values))
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError, OverflowError):
        return False


def _plain(value):
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else value


def _count(value) -> bool:
    return type(value) is int and 0 <= value <= _MOST_COUNT


def _finite(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _number(value) -> bool:
    return type(value) in (int, float)


def _dense(value) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _state(value) -> bool:
    return isinstance(value, dict) and bool(value) and all(type(k) is str and _dense(v) for k, v in value.items())


def _optimizer(value) -> bool:
    if value.keys() != {"state", "param_groups"} or not value["param_groups"]:
        return False
    for group in value["param_groups"]:
        numbers = [group[name] for name in ("lr", "weight_decay", "initial_lr")]
        if not all(map(_finite, numbers)) or not all(map(_count, group["params"])):
            return False
    places = [place for group in value["param_groups"] for place in group["params"]]
    states = value["state"].items()
    return len(set(places)) == len(places) and all(
        place in places and all(v is None or _number(v) or _dense(v) for v in state.values()) for place, state in states
    )


def _scaler(value) -> bool:
    names = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
    rates = (value["scale"], value["backoff_factor"], value["growth_factor"])
    return (
        value.keys() == names
        and all(_finite(rate) and rate > 0 for rate in rates)
        and value["backoff_factor"] < 1 < value["growth_factor"]
        and _count(value["growth_interval"])
        and value["growth_interval"] > 0
        and _count(value["_growth_tracker"])
    )


def _generator(value) -> bool:
    states = [value["cpu"]] if value["cuda"] is None else [value["cpu"], value["cuda"]]
    right = all(_dense(state) and state.dtype == torch.uint8 and state.dim() == 1 for state in states)
    return value.keys() == {"cpu", "cuda"} and right


def _running(value) -> bool:
    counts = [value[name] for name in ("samples", "top1", "top5")]
    times = [value[name] for name in ("seconds", "waited")]
    return (
        value.keys() == START.keys()
        and all(map(_count, counts))
        and all(map(_finite, times))
        and _number(value["loss"])
    )


def _row(value) -> bool:
    maybe = {"average_accuracy", "average_accuracy5", "loss_scale"}
    return value.keys() == set(COLUMNS) and all(
        _number(number) or (number is None and name in maybe) for name, number in value.items()
    )


def _rates(value) -> bool:
    return isinstance(value, dict) and all(type(name) is str and _number(rate) for name, rate in value.items())


#: key -> what its value must be, in words and as a test
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "config": ("a configuration", lambda value: isinstance(value, dict)),
    "model": ("a state dict", _state),
    "average": ("a state dict or None", lambda value: value is None or _state(value)),
    "optimizer": ("the state of an optimizer", _optimizer),
    "scaler": ("the state of a GradScaler", _scaler),
    "rng": (
        "the states of each process's generators",
        lambda value: type(value) is list and all(map(_generator, value)),
    ),
    "epoch": ("a number of epochs", _count),
    "step": ("a number of steps", _count),
    "samples": ("a number of samples", _count),
    "world": ("a number of processes", lambda value: _count(value) and value > 0),
    "running": ("the sums of an epoch", _running),
    "history": ("rows of metrics", lambda value: type(value) is list and all(map(_row, value))),
    "firing_rates": ("rates by layer for each epoch", lambda value: type(value) is list and all(map(_rates, value))),
    "seconds": ("seconds", _finite),
}

#: what is wrong -> a test of (content, its configuration) that must hold
_BETWEEN: dict[str, Callable[[Mapping[str, Any], Config], bool]] = {
    "epoch must be at most train.epochs of its configuration": lambda c, config: c["epoch"] <= config.train.epochs,
    "history and firing_rates must have a row for each epoch": lambda c, _: (
        c["epoch"] == len(c["history"]) == len(c["firing_rates"])
        and all(row["epoch"] == epoch for epoch, row in enumerate(c["history"]))
    ),
    "rng must have the generators of as many processes as world": lambda c, _: len(c["rng"]) == c["world"],
    "samples must be those of step batches of all processes": lambda c, config: (
        c["samples"] == c["step"] * config.data.batch_size * c["world"]
    ),
    "average must be there if train.ema is set, and only then": lambda c, config: (
        (c["average"] is not None) == bool(config.train.ema)
    ),
}
