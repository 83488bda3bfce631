"""Converts a checkpoint file of one dialect to another, without the memory of a model."""

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
from sewsnn.models.sew_resnet import FREE_SIZE
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
    """Converts a checkpoint file to another dialect.

    It reads ``source`` as :func:`sewsnn.models.load_checkpoint` does and writes the weights to ``target``. Every entry
    must fit. Values and dtypes do not change.

    Args:
        source: the file to read.
        target: the file to write; a name that ends in ``.safetensors`` gets that format.
        dialect: dialect of ``target``, one of :data:`sewsnn.models.DIALECTS`.
        model: name of the network (:func:`sewsnn.models.list_models`). Default None: the name in the file, if the file
            has one. The weights tell the number of classes and input channels, the neurons, the size of the first
            convolution and, for ``sew_resnet``, all sizes.
        container: the key of ``target`` for the weights; ``""``: the file holds only weights. Default ``"model"``.
        force: replace ``target`` if it exists. Default False.

    Returns:
        A :class:`LoadReport` of the entries.

    Raises:
        UserError: an argument or a file is wrong; the message says which. Nothing is written.

    Example:
        >>> report = convert_checkpoint(
        ...     "authors.pth", "torchvision.pt", "torchvision", model="sew_resnet18")  # doctest: +SKIP
    """
    if is_folder(target):
        raise UserError(f"{target} is a folder: expected the name of a file to write")
    if exists(target, follow=True):
        if os.path.exists(source) and os.path.samefile(source, target):
            raise UserError(f"{target} is the file to convert: write the result to another file")
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
    except (RuntimeError, MemoryError) as error:  # a few bytes of a file may expand to any number of equal values
        if not out_of_memory(error):
            raise
        raise CheckpointError(f"too little memory for the weights in {source}") from None
    write_state(target, state, container)
    return report


def network_of(weights: Weights, name: str | None, device: str = "meta", **more) -> nn.Module:
    """The network to which the weights belong. On the default device, meta, it takes no memory for them.

    Args:
        weights: the weights of a file.
        name: name of the network; None: the name in the file.
        device: where to make the network. Default ``"meta"``.
        more: arguments of the network that the weights do not tell, for example ``T``.

    Raises:
        UserError: neither ``name`` nor the file tells a known network, or the weights belong to another kind of
            network.
        ValueError: there is no such network.
    """
    said, known = weights.settings.get("name"), list_models()
    if name is None and said not in known:
        reason = "does not name its model" if said is None else f"names the unknown model {short(said)}"
        raise UserError(f"{weights.source} {reason}: --model must be one of {', '.join(known)}")
    name = name or said
    state = weights.state
    settings: dict[str, Any] = {"neuron": ParametricLIFNode if any(key.endswith(".w") for key in state) else IFNode}
    if "connect_f" in weights.settings:
        settings["connect_f"] = weights.settings["connect_f"]
    if name in FREE_SIZE:
        settings |= _sizes(weights)
    elif name == said:  # a network that was trained with other sizes than the published ones
        settings |= _other_sizes(weights)
    try:
        with torch.device("meta"):
            _, names = detect(create_model(name, **settings), state)
        with torch.device(device):
            return create_model(name, **settings, **ends_of(names, state), **more)
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise cannot_build(weights.source, error) from None


def cannot_build(source: str, error: Exception) -> CheckpointError:
    """The error for a network that is too large for this machine's memory, or for any."""
    reason = "too little memory" if out_of_memory(error) else str(error).splitlines()[0]
    return CheckpointError(f"{source}: cannot make a network of the sizes in this file: {reason}")


def ends_of(names: Mapping[str, str], state: Mapping[str, Any]) -> dict[str, int]:
    """``in_channels``, ``stem_kernel`` and ``num_classes``, read from the first and the last layer of a state dict."""
    found = {}
    stem = state.get(names.get("conv1.weight") or names.get("layer1.conv.weight"))
    if isinstance(stem, Tensor) and is_dense(stem) and stem.dim() == 4:
        found |= {"in_channels": stem.shape[1], "stem_kernel": stem.shape[-1]}
    last = state.get(names.get("fc.weight"))
    if isinstance(last, Tensor) and is_dense(last) and last.dim() == 2:
        found["num_classes"] = last.shape[0]
    return found


def _other_sizes(weights: Weights) -> dict[str, list[int]]:
    """``blocks`` and ``widths`` of the configuration in a file, if it has them."""
    of_model = (weights.config or {}).get("model")
    found = {key: of_model.get(key) for key in ("blocks", "widths")} if isinstance(of_model, dict) else {}

    def is_sizes(value: Any) -> bool:
        return isinstance(value, list) and 0 < len(value) <= 16 and all(type(n) is int and 0 < n < 2**16 for n in value)

    return {key: value for key, value in found.items() if is_sizes(value)}


def _sizes(weights: Weights) -> dict[str, Any]:
    """Stages, blocks and channels of a ResNet of any size, read from its weights."""
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
