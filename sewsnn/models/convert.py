"""A checkpoint of one dialect as a file of another, without a model to hold it."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sewsnn.errors import CheckpointError, UserError, out_of_memory, short
from sewsnn.files import exists, is_folder
from sewsnn.models.checkpoint import (
    LoadReport,
    check_dialect,
    fit,
    names_in,
    plain_copy,
    write_state,
)
from sewsnn.models.dialects import detect
from sewsnn.models.registry import create_model, list_models
from sewsnn.models.weights import Weights, is_dense, read_weights
from sewsnn.neuron import IFNode, ParametricLIFNode

# The first convolution of a block: layer1.0.conv1 in a ResNet of any dialect.
_FIRST_CONV = re.compile(r"layer(\d+)\.(\d+)\.conv1\.(?:module\.)?(?:0\.)?weight")


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    dialect: str,
    *,
    model: str | None = None,
    container: str = "model",
    force: bool = False,
) -> LoadReport:
    """Reads ``source`` as :func:`sewsnn.models.load_checkpoint` does and writes its weights to ``target``. Every entry
    must fit; values and dtypes stay as they are.

    Args:
        source, target: files.
        dialect: of ``target``, one of :data:`sewsnn.models.DIALECTS`.
        model: its name (:func:`sewsnn.models.list_models`); None: as the file says, if it does. Classes, input
            channels, neurons, the size of the first convolution and, for ``sew_resnet``, of everything are read from
            the weights.
        container: the key of ``target`` under which the weights will be; empty: they are all there is.
        force: ``target`` may be there already, and is replaced.

    Raises:
        UserError: an argument or a file is not as it must be, the message says which; nothing is written.
    """
    if is_folder(target):
        raise UserError(f"{target} is a folder: expected the name of a file to write")
    if exists(target, follow=True):
        if os.path.exists(source) and os.path.samefile(source, target):
            raise UserError(f"{target} is the file to be converted: it must be written to another")
        if not force:
            raise UserError(f"{target} exists already: --force replaces it")
    try:
        check_dialect(dialect)
        weights = read_weights(source)
        network = network_of(weights, model)
        names = names_in(network, dialect)
    except ValueError as error:
        raise UserError(str(error)) from None
    report, entries = fit(network, weights)
    report.check()
    try:
        state = {names[key]: plain_copy(value) for key, value in entries.items()}
    except (RuntimeError, MemoryError) as error:  # a few bytes may stand for any number of equal values
        if not out_of_memory(error):
            raise
        raise CheckpointError(f"too little memory for the weights in {source}") from None
    write_state(target, state, container)
    return report


def network_of(weights: Weights, name: str | None, device: str = "meta", **more) -> nn.Module:
    """The network whose weights they are, without memory for them unless on another device.

    Args:
        name: as ``model`` of :func:`convert_checkpoint`.
        more: arguments of the network that weights do not tell, such as ``T``.

    Raises:
        UserError: the weights do not tell which network's they are, or are of none.
        ValueError: there is no such network.
    """
    said, known = weights.settings.get("name"), list_models()
    if name is None and said not in known:
        reason = "does not say which model it is of" if said is None else f"is of a model it calls {short(said)}"
        raise UserError(f"{weights.source} {reason}: --model must be one of {', '.join(known)}")
    name = name or said
    state = weights.state
    settings: dict[str, Any] = {"neuron": ParametricLIFNode if any(key.endswith(".w") for key in state) else IFNode}
    if "connect_f" in weights.settings:
        settings["connect_f"] = weights.settings["connect_f"]
    if name == "sew_resnet":
        settings |= _sizes(weights)
    try:
        with torch.device("meta"):
            _, names = detect(create_model(name, **settings), state)
        with torch.device(device):
            return create_model(name, **settings, **ends_of(names, state), **more)
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise cannot_build(weights.source, error) from None


def cannot_build(source: str, error: Exception) -> CheckpointError:
    """The error of a network that is too large for the memory, or for any."""
    reason = "too little memory" if out_of_memory(error) else str(error).splitlines()[0]
    return CheckpointError(f"{source}: the network whose sizes its entries tell cannot be made: {reason}")


def ends_of(names: Mapping[str, str], state: Mapping[str, Any]) -> dict[str, int]:
    """What the first and the last layer say, by the names the model's own have in the state: ``in_channels``,
    ``stem_kernel``, ``num_classes``."""
    found = {}
    stem = state.get(names.get("conv1.weight") or names.get("layer1.conv.weight"))
    if isinstance(stem, Tensor) and is_dense(stem) and stem.dim() == 4:
        found |= {"in_channels": stem.shape[1], "stem_kernel": stem.shape[-1]}
    last = state.get(names.get("fc.weight"))
    if isinstance(last, Tensor) and is_dense(last) and last.dim() == 2:
        found["num_classes"] = last.shape[0]
    return found


def _sizes(weights: Weights) -> dict[str, Any]:
    """Stages, blocks and channels of a ResNet of any size."""
    widths: dict[int, int] = {}
    blocks: dict[int, int] = {}
    for key, value in weights.state.items():
        match = _FIRST_CONV.fullmatch(key)
        if match and isinstance(value, Tensor) and is_dense(value) and value.dim() == 4:
            stage = int(match[1])
            widths[stage] = value.shape[0]
            blocks[stage] = blocks.get(stage, 0) + 1
    if not blocks or sorted(blocks) != list(range(1, len(blocks) + 1)):
        raise CheckpointError(f"{weights.source} is not of a ResNet: it has no layer1.0.conv1, layer2.0.conv1 ...")
    bottleneck = any(re.match(r"layer1\.0\.conv3\.", key) for key in weights.state)
    stages = sorted(blocks)
    return {
        "blocks": [blocks[stage] for stage in stages],
        "widths": [widths[stage] for stage in stages],
        "bottleneck": bottleneck,
    }
