"""The required content of a training checkpoint: each key and the form of its value.

A file with correct checksums may still hold content that no run wrote. All of it is checked before any of it is used.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sewsnn.analysis.monitor import MEASURES
from sewsnn.errors import CheckpointError, UserError, short
from sewsnn.models.weights import is_dense
from sewsnn.train.config import check, from_dict
from sewsnn.train.metrics import COLUMNS

_LARGEST = 2**62  # limit of a counter


class Rule(NamedTuple):
    """Requires a value for which ``test`` returns True; ``text`` describes it for messages."""

    text: str
    test: Callable[[Any], bool]


class Named(NamedTuple):
    """Requires a dictionary from any text to values that satisfy ``rule``."""

    rule: Any


class OrNone(NamedTuple):
    """Requires None, or a value that satisfies ``rule``."""

    rule: Any


def _is_whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value <= _LARGEST


def _is_number(value: Any) -> bool:
    """Returns whether the value is a number that a float can hold; infinities and NaN are allowed."""
    return type(value) is float or (type(value) is int and abs(value) <= _LARGEST)


def _is_finite(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return _is_number(value) and math.isfinite(value) and least <= value <= most


def _is_config(value: Any) -> bool:
    try:
        check(from_dict(value))
    except UserError:
        return False
    return True


def _is_plain(value: Any, levels: int = 4) -> bool:
    """Returns whether the value consists of text, numbers, booleans, None and collections of them, as in YAML."""
    if isinstance(value, dict):
        return levels > 0 and all(type(k) is str and _is_plain(v, levels - 1) for k, v in value.items())
    if isinstance(value, list | tuple):
        return levels > 0 and all(_is_plain(v, levels - 1) for v in value)
    return value is None or type(value) in (str, bool) or _is_number(value)


def _is_cpu_state(value: Any) -> bool:
    """Returns whether torch accepts the value as the state of a CPU generator."""
    own = torch.get_rng_state()
    if not (isinstance(value, Tensor) and is_dense(value) and value.dtype == own.dtype and value.shape == own.shape):
        return False
    try:
        torch.Generator().set_state(value)
    except RuntimeError:
        return False
    return True


def _is_cuda_state(value: Any) -> bool:
    right = isinstance(value, Tensor) and is_dense(value) and value.dtype == torch.uint8
    return right and value.dim() == 1 and 0 < value.numel() < 1024


TEXT = Rule("text", lambda value: type(value) is str)
WHOLE = Rule("a whole number >= 0", _is_whole)
COUNT = Rule("a whole number >= 1", lambda value: _is_whole(value, 1))
NUMBER = Rule("a number", _is_number)
FINITE = Rule("a finite number", _is_finite)
AMOUNT = Rule("a finite number >= 0", lambda value: _is_finite(value, 0))
SHARE = Rule("a number from 0 to 1", lambda value: _is_finite(value, 0, 1))
TENSOR = Rule("a dense tensor", lambda value: isinstance(value, Tensor) and is_dense(value))
PLAIN = Rule("numbers, text, true, false or null", _is_plain)

_COLUMN = dict.fromkeys(COLUMNS, AMOUNT) | {
    "epoch": WHOLE,
    "corrupt_samples": WHOLE,
    "train_loss": NUMBER,
    "test_loss": NUMBER,
    "train_accuracy": SHARE,
    "train_accuracy5": SHARE,
    "test_accuracy": SHARE,
    "test_accuracy5": SHARE,
    "average_accuracy": OrNone(SHARE),
    "average_accuracy5": OrNone(SHARE),
    "loss_scale": OrNone(AMOUNT),
}
_SCALER = {
    "scale": Rule("a finite number above 0", lambda value: _is_finite(value, 0) and value > 0),
    "growth_factor": Rule("a finite number above 1", lambda value: _is_finite(value, 1) and value > 1),
    "backoff_factor": Rule("a number between 0 and 1", lambda value: _is_finite(value, 0, 1) and 0 < value < 1),
    "growth_interval": COUNT,
    "_growth_tracker": WHOLE,
}

CONTENTS = {
    "format": TEXT,
    "version": WHOLE,
    "versions": Named(TEXT),
    "config": Rule("a configuration of sewsnn train", lambda value: _is_plain(value) and _is_config(value)),
    "model": Named(TENSOR),
    "average": OrNone(Named(TENSOR)),
    "optimizer": {
        "state": Rule(
            "a dictionary with whole numbers as keys", lambda v: isinstance(v, dict) and all(map(_is_whole, v))
        ),
        "param_groups": [Named(PLAIN)],
    },
    "scaler": _SCALER,
    "rng": [
        {
            "cpu": Rule("the state of a generator of torch", _is_cpu_state),
            "cuda": OrNone(Rule("the state of a CUDA generator", _is_cuda_state)),
        }
    ],
    "epoch": WHOLE,
    "step": WHOLE,
    "samples": WHOLE,
    "data": OrNone({"train": OrNone(WHOLE), "test": OrNone(WHOLE), "classes": OrNone(TEXT)}),
    "world": COUNT,
    "running": {
        "samples": WHOLE,
        "loss": FINITE,
        "top1": WHOLE,
        "top5": WHOLE,
        "seconds": AMOUNT,
        "waited": AMOUNT,
    },
    "history": [_COLUMN],
    "firing_rates": [Named(NUMBER)],
    "monitor": OrNone({"sums": [[NUMBER]], "history": [Named(dict.fromkeys(MEASURES, OrNone(NUMBER)))]}),
    "seconds": AMOUNT,
}


def check_contents(content: dict[str, Any], path: Path) -> None:
    """Checks the content of a file against :data:`CONTENTS`, and its numbers against each other. Files of older
    versions without ``data`` or ``monitor`` get None there.

    Args:
        content: the content of the file.
        path: its name, for messages.

    Raises:
        CheckpointError: a key is missing or unknown, or a value is invalid; the message names the file, the key and
            what was expected.
    """
    for key in ("data", "monitor"):
        content.setdefault(key, None)
    for where, expected, value in _differences(CONTENTS, content, ""):
        raise CheckpointError(f"{path} is not a valid checkpoint: {where} must be {expected}, got {short(value)}")
    for where, expected, value in _contradictions(content):
        if value != expected:
            raise CheckpointError(
                f"{path} is not a valid checkpoint: {where} must be {short(expected)} according to its other values, "
                f"got {short(value)}"
            )


def _differences(rule: Any, value: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """Yields where the value violates the rule: the place, what was expected, the value."""
    inside = f"{where}." if where else ""
    if isinstance(rule, Rule):
        if not rule.test(value):
            yield where, rule.text, value
    elif isinstance(rule, OrNone):
        if value is not None:
            yield from _differences(rule.rule, value, where)
    elif isinstance(rule, list):
        if not isinstance(value, list):
            yield where, "a list", value
            return
        for i, item in enumerate(value):
            yield from _differences(rule[0], item, f"{where}[{i}]")
    elif not isinstance(value, dict) or not all(type(key) is str for key in value):
        yield where, "a dictionary with text as keys", value
    elif isinstance(rule, Named):
        for key, item in value.items():
            yield from _differences(rule.rule, item, f"{inside}{short(key)[1:-1]}")
    else:
        for key in rule.keys() - value.keys():
            yield f"{inside}{key}", "present", "nothing"
        for key in value.keys() - rule.keys():
            yield f"{inside}{short(key)[1:-1]}", "absent", value[key]
        for key in rule:
            yield from _differences(rule[key], value[key], f"{inside}{key}")


def _contradictions(content: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields values that follow from other values: the place, the required value, the value."""
    config, epoch, running = from_dict(content["config"]), content["epoch"], content["running"]
    yield "epoch", min(epoch, config.train.epochs), epoch
    yield "the length of history", epoch, len(content["history"])
    yield "the length of firing_rates", epoch, len(content["firing_rates"])
    yield "history[].epoch", list(range(epoch)), [row["epoch"] for row in content["history"]]
    for row in content["firing_rates"]:
        yield "firing_rates[]", list(content["firing_rates"][0]), list(row)
    yield "the length of rng", content["world"], len(content["rng"])
    yield "samples", content["step"] * config.data.batch_size * content["world"], content["samples"]
    yield "running.top1", min(running["top1"], running["top5"]), running["top1"]
    yield "running.top5", min(running["top5"], running["samples"]), running["top5"]
    yield "whether there is an average", bool(config.train.ema), content["average"] is not None
    yield "whether there is a monitor", config.train.monitor, content["monitor"] is not None
    if content["monitor"] is not None:
        yield "the length of monitor.history", epoch, len(content["monitor"]["history"])


def check_fit(saved: dict[str, Any], model: nn.Module, average: nn.Module | None, optimizer) -> None:
    """Compares the tensors of a checkpoint with those they will replace, and the settings of the optimizer with its
    own.

    Args:
        saved: the content of the checkpoint.
        model: the network of the run.
        average: the moving average of its weights, or None.
        optimizer: the optimizer of the run.

    Raises:
        ValueError: a value does not fit; the message names it and the cause.
    """
    _check_tensors("model", saved["model"], model.state_dict())
    if average is not None:
        _check_tensors("average", saved["average"], average.state_dict())
    own, found = optimizer.state_dict()["param_groups"], saved["optimizer"]["param_groups"]
    if len(own) != len(found):
        raise ValueError(f"optimizer.param_groups: the file has {len(found)}, this run has {len(own)}")
    for i, (group, of_file) in enumerate(zip(own, found, strict=True)):
        for key in sorted(_OF_TRAINING & group.keys() | of_file.keys()):
            at = f"optimizer.param_groups[{i}].{short(key)[1:-1]}"
            if key == "lr":
                if not _is_finite(of_file.get(key), 0):
                    raise ValueError(f"{at} must be a finite number >= 0, got {short(of_file.get(key))}")
            elif key not in of_file or (key in _OF_TRAINING and not _same(group.get(key), of_file[key])):
                raise ValueError(
                    f"{at} is {short(of_file.get(key))} in the file and {short(group.get(key))} in this run"
                )
    _check_state(saved["optimizer"]["state"], optimizer)


# The optimizer settings that affect the result. The other settings are implementation details of torch, which differ
# between its versions and between devices.
_OF_TRAINING = {"params", "lr", "initial_lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"}
_OF_TRAINING |= {"betas", "eps", "amsgrad"}


def _same(own: Any, found: Any) -> bool:
    if isinstance(own, tuple):  # AdamW's betas
        return isinstance(found, tuple | list) and list(own) == list(found)
    return own == found


def _check_tensors(part: str, found: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    for key in sorted(own.keys() ^ found.keys()):
        raise ValueError(f"{part}: {short(key)[1:-1]} is {'missing' if key in own else 'not part of this network'}")
    for key, value in own.items():
        _check_tensor(f"{part}.{key}", found[key], value.dtype, value.shape)


def _check_tensor(where: str, found: Any, dtype: torch.dtype, shape: torch.Size) -> None:
    if not isinstance(found, Tensor) or not is_dense(found):
        raise ValueError(f"{where} must be a dense tensor, got {short(found)}")
    if (found.dtype, found.shape) != (dtype, shape):
        raise ValueError(
            f"{where} is {found.dtype} {list(found.shape)} in the file and {dtype} {list(shape)} in this run"
        )


def _check_state(state: dict[int, Any], optimizer: torch.optim.Optimizer) -> None:
    """Checks the optimizer's state: it must be empty, or complete for every parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    adam = isinstance(optimizer, torch.optim.AdamW)
    names = {"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}
    if state and sorted(state) != list(range(len(parameters))):
        raise ValueError(f"optimizer.state has {len(state)} parameters, but this run has {len(parameters)}")
    for i, entries in state.items():
        if not isinstance(entries, dict) or entries.keys() != names:
            raise ValueError(f"optimizer.state[{i}] must have {', '.join(sorted(names))}, got {short(entries)}")
        for name, value in entries.items():
            where = f"optimizer.state[{i}].{name}"
            if name == "step":
                _check_tensor(where, value, torch.float32, torch.Size([]))
                if not (value.isfinite() and value >= 0):
                    raise ValueError(f"{where} must be a finite number >= 0, got {float(value)}")
            else:
                _check_tensor(where, value, parameters[i].dtype, parameters[i].shape)
