"""The state dict in a checkpoint file of whatever program."""

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sewsnn.errors import CheckpointError
from sewsnn.files import load_tensors

# Keys under which a file keeps its weights, beside optimizer, epoch and the like.
_CONTAINERS = ("model", "net", "state_dict", "model_state_dict", "module")
# What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 10  # names in a message


@dataclass(frozen=True)
class Weights:
    """A state dict as it was found, without prefixes."""

    source: str
    state: dict[str, Any]
    container: str | None = None
    ignored: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # the model's, where the file says so


def read_weights(source: str | os.PathLike | Mapping[str, Any]) -> Weights:
    """The state dict in a file or in its content.

    Raises:
        TypeError: it is neither.
        CheckpointError: as :func:`load_checkpoint`.
    """
    if isinstance(source, Mapping):
        return _find_state(source, "state dict")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"path_or_state_dict must be a path or a mapping, got {type(source).__name__}")
    return _find_state(load_tensors(Path(source), [argparse.Namespace]), str(source))


def _find_state(content: Any, source: str) -> Weights:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} is not a checkpoint: it must hold a dictionary, not {type(content).__name__}")
    for key in _CONTAINERS:
        if _is_state(content.get(key)):
            others = tuple(str(other) for other in content if other != key)
            return Weights(source, _without_prefixes(content[key]), key, others, _settings(content))
    if _is_state(content):
        return Weights(source, _without_prefixes(content))
    raise CheckpointError(
        f"{source} is not a checkpoint: it must hold tensors by name, or a dictionary of them under one of "
        f"{', '.join(_CONTAINERS)}; it has {some(map(str, content)) or 'nothing'}"
    )


def _is_state(content: Any) -> bool:
    """Names and, among the values, a tensor; what else there is will be named."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    return any(isinstance(value, Tensor) for value in content.values())


def _without_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    state = dict(state)
    while True:
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
                break
        else:
            return state


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


def some(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
