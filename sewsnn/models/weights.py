"""The state dict in a checkpoint file of whatever program."""

import argparse
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sewsnn.errors import CheckpointError, short
from sewsnn.files import read_tensors
from sewsnn.models import safetensors

# Keys under which a file keeps its weights, beside optimizer, epoch and the like, in the order they are looked for. The
# moving averages are last: they are read where there are no others, or where they are asked for.
_CONTAINERS = ("model", "net", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")
_WRAPPER = "module."  # what DistributedDataParallel and AveragedModel put before every name
_COMPILED = "_orig_mod"  # what torch.compile puts into the names of the modules that are compiled
_COUNTER = "n_averaged"  # what AveragedModel has besides
_CONSTANT = re.compile(r"(^|\.)surrogate_function\.\w+$")
_SHOWN = 10  # names in a message
_LONGEST = 200  # characters of one


@dataclass(frozen=True)
class Weights:
    """A state dict as it was found, without prefixes."""

    source: str
    state: dict[str, Any]
    container: str | None = None
    ignored: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # the model's, where the file says so
    config: Mapping[str, Any] | None = None  # of the run of sewsnn train that wrote it
    data: Mapping[str, Any] | None = None  # what that run was trained on; older ones do not say
    constants: tuple[str, ...] = ()  # entries of older SpikingJelly that are settings of surrogate functions
    notes: tuple[str, ...] = ()


def read_weights(
    source: str | os.PathLike | Mapping[str, Any], container: str | None = None, known: Collection[str] = ()
) -> Weights:
    """The state dict in a file or in its content.

    Args:
        container: the key it is under; None: it is looked for.
        known: names that a model has in whatever dialect: what is one of them is no prefix.

    Raises:
        TypeError: an argument is of another type.
        CheckpointError: as :func:`load_checkpoint`.
    """
    if container is not None and not isinstance(container, str):
        raise TypeError(f"container must be a str or None, got {type(container).__name__}")
    note = ""
    if isinstance(source, Mapping):
        content, source = source, "state dict"
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(f"path_or_state_dict must be a path or a mapping, got {type(source).__name__}")
    elif safetensors.is_one(source):
        content, note = safetensors.read(source)
    else:
        content, note = read_tensors(Path(source), [argparse.Namespace])
    source = str(source)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} is not a checkpoint: it must hold a dictionary, not {type(content).__name__}")
    key = _container(content, source, container)
    state = _plain_names(content[key] if key else content, source, known)
    constants = tuple(name for name, value in state.items() if name not in known and _is_constant(name, value))
    state = {name: value for name, value in state.items() if name not in constants}
    notes = (f"note: {note}",) if note else ()
    if not key:
        return Weights(source, state, constants=constants, notes=notes)
    others = tuple(shown(other) for other in content if not (isinstance(other, str) and other == key))
    config = content.get("config") if isinstance(content.get("config"), Mapping) else None
    data = content.get("data") if _is_of_training(content) and isinstance(content.get("data"), Mapping) else None
    return Weights(source, state, key, others, _settings(content), config, data, constants, notes)


def _is_of_training(content: Mapping[str, Any]) -> bool:
    """Whether ``sewsnn train`` wrote it."""
    return isinstance(content.get("format"), str) and content["format"] == "sewsnn.train"


def _is_constant(name: str, value: Any) -> bool:
    """Whether it is a setting of a surrogate function, which SpikingJelly once kept as a tensor: ``alpha``."""
    return bool(_CONSTANT.search(name)) and isinstance(value, Tensor) and is_dense(value) and value.numel() == 1


def _container(content: Mapping[str, Any], source: str, wanted: str | None) -> str | None:
    """The key under which the weights are; None: the content itself is."""
    holders = [key for key, value in content.items() if isinstance(key, str) and _is_state(value)]
    has = f"it has {some(content) or 'nothing'}"
    if wanted is None and _is_of_training(content):
        wanted = "model"  # and never the moving average in its place
    if wanted:
        if wanted not in holders:
            raise CheckpointError(f"{source} has no tensors by name under {short(wanted)}: {has}")
        return wanted
    if wanted is None:
        for key in _CONTAINERS:
            if key in holders:
                return key
    if _is_state(content):
        return None
    if wanted is None and len(holders) == 1:
        return holders[0]
    choice = f"; which of {some(map(repr, holders))} is meant, container must say" if holders else ""
    raise CheckpointError(
        f"{source} is not a checkpoint: it must hold tensors by name, or a dictionary of them under one of "
        f"{', '.join(_CONTAINERS)} or one other key; {has}{choice}"
    )


def _is_state(content: Any) -> bool:
    """Names and, among the values, a tensor; what else there is will be named."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    return any(isinstance(value, Tensor) for value in content.values())


def is_dense(value: Tensor) -> bool:
    """Whether a tensor is an array of numbers: neither sparse, quantized or nested, nor without values."""
    return not (value.is_meta or value.is_nested or value.is_quantized) and value.layout is torch.strided


def _plain_names(state: Mapping[str, Any], source: str, known: Collection[str]) -> dict[str, Any]:
    """Without what wrappers put into names. ``module.`` may be a model's own: it goes as often as makes the most names
    known ones, and where that does not tell, as often as all have it."""
    plain: dict[str, Any] = {}
    for key, value in state.items():
        name = without_compiled(key)
        if name in plain:
            raise CheckpointError(f"{source} has the entry {shown(name)} twice, once of a compiled module")
        plain[name] = value
    forms = [plain]
    while rest := _unwrapped(forms[-1]):
        forms.append(rest)
    known = set(known)
    return max(reversed(forms), key=lambda form: len(known.intersection(form)))


def _unwrapped(state: dict[str, Any]) -> dict[str, Any] | None:
    """With one wrapper less; None: there is none."""
    inner = {key: value for key, value in state.items() if key != _COUNTER}
    if not inner or not all(key.startswith(_WRAPPER) for key in inner):
        return None
    return {key.removeprefix(_WRAPPER): value for key, value in inner.items()}


def without_compiled(key: str) -> str:
    """A name as it is where nothing is compiled."""
    return ".".join(part for part in key.split(".") if part != _COMPILED)


def _settings(content: Mapping[str, Any]) -> dict[str, str]:
    """``name`` and ``connect_f`` of the model: from the authors' ``args``, or our training's ``config``."""
    args, config = content.get("args"), content.get("config")
    if isinstance(args, argparse.Namespace):
        said = {"name": getattr(args, "model", None), "connect_f": getattr(args, "connect_f", None)}
    elif isinstance(config, Mapping) and isinstance(config.get("model"), Mapping):
        said = {key: config["model"].get(key) for key in ("name", "connect_f")}
    else:
        said = {}
    return {key: value for key, value in said.items() if isinstance(value, str)}


def some(names: Iterable[Any]) -> str:
    """The first few, and how many more."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more


def shown(name: Any) -> str:
    """A name for a message: as it is, unless it would break the line or fill it."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST else short(name)
