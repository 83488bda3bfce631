"""Finds the state dict in a checkpoint file of any program."""

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

# Keys under which files keep their weights (beside the optimizer, the epoch and so on), in the order of the search. The
# moving averages are last: they are read only if there are no other weights, or if container names them.
_CONTAINERS = ("model", "net", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")
_WRAPPER = "module."  # the prefix that DistributedDataParallel and AveragedModel put before every name
_COMPILED = "_orig_mod"  # the part that torch.compile inserts into the names of compiled modules
_COUNTER = "n_averaged"  # an additional entry of AveragedModel
_CONSTANT = re.compile(r"(^|\.)surrogate_function\.\w+$")
_SHOWN = 10  # most names in a message
_LONGEST = 200  # most characters of a name in a message


@dataclass(frozen=True)
class Weights:
    """A state dict with its origin, its names without prefixes."""

    source: str
    state: dict[str, Any]
    container: str | None = None
    ignored: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # settings of the model that the file states
    config: Mapping[str, Any] | None = None  # configuration of the run of sewsnn train that wrote the file
    data: Mapping[str, Any] | None = None  # data that this run was trained on; older files do not state it
    constants: tuple[str, ...] = ()  # settings of surrogate functions, which older SpikingJelly stored as entries
    notes: tuple[str, ...] = ()


def read_weights(
    source: str | os.PathLike | Mapping[str, Any], container: str | None = None, known: Collection[str] = ()
) -> Weights:
    """The state dict in a file or in the content of one.

    Args:
        source: the file or its content.
        container: the key that holds it; None: search for it.
        known: the names of a model in all dialects. They are not treated as prefixes.

    Raises:
        TypeError: an argument has the wrong type.
        CheckpointError: the file cannot be read, or it holds no state dict.
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
    """Returns whether ``sewsnn train`` wrote the file."""
    return isinstance(content.get("format"), str) and content["format"] == "sewsnn.train"


def _is_constant(name: str, value: Any) -> bool:
    """Returns whether the entry is a surrogate setting (``alpha``), which older SpikingJelly stored as a tensor."""
    return bool(_CONSTANT.search(name)) and isinstance(value, Tensor) and is_dense(value) and value.numel() == 1


def _container(content: Mapping[str, Any], source: str, wanted: str | None) -> str | None:
    """The key that holds the weights; None: the content itself is the state dict."""
    holders = [key for key, value in content.items() if isinstance(key, str) and _is_state(value)]
    has = f"it has {some(content) or 'nothing'}"
    if wanted is None and _is_of_training(content):
        wanted = "model"  # never the moving average in its place
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
    choice = f"; choose one of {some(map(repr, holders))} with container" if holders else ""
    raise CheckpointError(
        f"{source} is not a checkpoint: it must hold tensors by name, or a dictionary of them under one of "
        f"{', '.join(_CONTAINERS)} or one other key; {has}{choice}"
    )


def _is_state(content: Any) -> bool:
    """Returns whether this is a dictionary of names with at least one tensor. The report lists the other entries."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    return any(isinstance(value, Tensor) for value in content.values())


def is_dense(value: Tensor) -> bool:
    """Returns whether a tensor is a plain array: not sparse, quantized or nested, and not on the meta device."""
    return not (value.is_meta or value.is_nested or value.is_quantized) and value.layout is torch.strided


def _plain_names(state: Mapping[str, Any], source: str, known: Collection[str]) -> dict[str, Any]:
    """The state dict without the prefixes of wrappers.

    ``module.`` may also be part of a model's own names. It is removed as often as makes most names known; if that
    leaves a choice, as often as all names have it.
    """
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
    """The state dict with one wrapper prefix less; None: there is none."""
    inner = {key: value for key, value in state.items() if key != _COUNTER}
    if not inner or not all(key.startswith(_WRAPPER) for key in inner):
        return None
    return {key.removeprefix(_WRAPPER): value for key, value in inner.items()}


def without_compiled(key: str) -> str:
    """A name without the part that torch.compile inserts."""
    return ".".join(part for part in key.split(".") if part != _COMPILED)


def _settings(content: Mapping[str, Any]) -> dict[str, str]:
    """``name`` and ``connect_f`` of the model, from the authors' ``args`` or the ``config`` of ``sewsnn train``."""
    args, config = content.get("args"), content.get("config")
    if isinstance(args, argparse.Namespace):
        said = {"name": getattr(args, "model", None), "connect_f": getattr(args, "connect_f", None)}
    elif isinstance(config, Mapping) and isinstance(config.get("model"), Mapping):
        said = {key: config["model"].get(key) for key in ("name", "connect_f")}
    else:
        said = {}
    return {key: value for key, value in said.items() if isinstance(value, str)}


def some(names: Iterable[Any]) -> str:
    """The first few names and the number of the others, for a message."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more


def shown(name: Any) -> str:
    """A name for a message: unchanged, unless it is long or cannot be printed."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST else short(name)
