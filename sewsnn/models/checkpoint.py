"""Loads checkpoints of any dialect into a network (:func:`load_checkpoint`) and saves them."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sewsnn.errors import CheckpointError
from sewsnn.files import save_tensors, write_atomic
from sewsnn.models import safetensors
from sewsnn.models.blocks import Block
from sewsnn.models.dialects import DIALECTS, detect, dialects
from sewsnn.models.weights import Weights, is_dense, read_weights, shown, some


@dataclass(frozen=True)
class LoadReport:
    """The result of loading a checkpoint: which entries were loaded and which were not. ``print(report)`` is readable.

    Attributes:
        source: the file, or ``state dict``.
        dialect: one of :data:`sewsnn.models.DIALECTS`. For ResNets ``torchvision`` and ``sewsnn`` have the same names,
            and the report says ``torchvision``.
        container: the key of the file that holds the weights; None: the file holds only weights.
        mapped: number of entries that were loaded.
        missing: entries of the model that are not in the file, by the model's names. They stay unchanged.
        unexpected: entries of the file that the model does not have, by the file's names.
        mismatched: the file's name of each entry that does not fit -> the reason with both shapes or dtypes.
        kept: ``num_batches_tracked`` entries of the model that an older file does not have. This is no error.
        constants: settings of surrogate functions that older SpikingJelly versions stored as entries
            (``sn1.surrogate_function.alpha``). They are not loaded. This is no error.
        ignored: other keys of the file.
        notes: remarks that are no errors.
        names: the model's name of each entry -> the file's name.
    """

    source: str
    dialect: str
    container: str | None
    mapped: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def complete(self) -> bool:
        """Returns whether every entry of the model was loaded and every entry of the file was used."""
        return not (self.missing or self.unexpected or self.mismatched)

    def differences(self) -> list[str]:
        """Describes the entries that do not fit.

        Returns:
            One phrase for each kind of difference; a phrase lists only the first few names.
        """
        found = []
        if self.missing:
            found.append(f"missing: {some(self._both_names(key) for key in self.missing)}")
        if self.unexpected:
            found.append(f"not in the model: {some(self.unexpected)}")
        if self.mismatched:
            found.append(f"does not fit: {some(f'{shown(key)}, {why}' for key, why in self.mismatched.items())}")
        return found

    def check(self) -> None:
        """Raises an error unless the report is complete.

        Raises:
            CheckpointError: an entry is missing, unexpected or does not fit; the message lists them.
        """
        if not self.complete:
            raise CheckpointError(
                f"{self.source} does not fit the model (dialect {self.dialect!r}, {self.mapped} of {len(self.names)} "
                f"entries fit): {'; '.join([*self.differences(), *self.notes])}"
            )

    def _both_names(self, key: str) -> str:
        name = self.names.get(key, key)
        return name if name == key else f"{name} (here {key})"

    def __str__(self) -> str:
        where = f", under {self.container!r}" if self.container else ""
        lines = [f"{self.source}: {self.mapped} of {len(self.names)} entries, dialect {self.dialect!r}{where}"]
        lines += self.differences()
        if self.kept:
            lines.append(f"not in the file, which is older: {len(self.kept)} x num_batches_tracked")
        if self.constants:
            lines.append(f"not loaded, settings of surrogate functions: {some(self.constants)}")
        if self.ignored:
            lines.append(f"other keys of the file, not read: {some(self.ignored)}")
        return "\n  ".join([*lines, *self.notes])


def load_checkpoint(
    model: nn.Module,
    path_or_state_dict: str | os.PathLike | Mapping[str, Any],
    *,
    strict: bool = True,
    container: str | None = None,
) -> LoadReport:
    """Loads weights of any dialect into ``model``.

    The names of the entries tell the dialect (:mod:`sewsnn.models.dialects`).

    A file holds a state dict, or a dictionary that contains one: the authors' checkpoints, torchvision's weights,
    SpikingJelly's models, checkpoints of ``sewsnn train``. The function reads the first of these keys that holds a
    state dict: ``model``, ``net``, ``state_dict``, ``model_state_dict``, ``module``, ``model_ema``, ``state_dict_ema``;
    else the only key that holds one. It reads files called ``.safetensors`` with the package safetensors.

    It removes the prefixes of ``DistributedDataParallel``, ``AveragedModel`` and ``torch.compile`` from the names, in
    the file and in the model. It converts values to the model's dtype and device. Weights of an ANN are a starting
    point for training; the activations of an ANN are not spikes.

    Files are read with ``weights_only=True``. Besides tensors, numbers, text and collections of them, only
    ``argparse.Namespace`` is allowed, because the authors' files contain it.

    Args:
        model: a network of :mod:`sewsnn.models`, which ``DistributedDataParallel`` or ``torch.compile`` may wrap.
        path_or_state_dict: a file, or the content of one.
        strict: every entry must fit. Default True. False loads the entries that fit and reports the others.
        container: the key of the file to read, for example ``"model_ema"`` for a moving average; ``""``: the file holds
            only weights. Default None: the key is found as described above.

    Returns:
        A :class:`LoadReport` of the entries that were mapped, missing, unexpected or mismatched.

    Raises:
        CheckpointError: the file cannot be read or holds something else; or an entry is missing, unexpected, has
            another shape, or is too large for the model's dtype. The message lists names and shapes, and the model is
            unchanged.
        TypeError, ValueError: an argument is wrong; the message names it.

    Example:
        >>> net = sewsnn.models.create_model("sew_resnet18")
        >>> report = load_checkpoint(net, net.state_dict())
    """
    model = unwrapped(model)
    known = {name for names in dialects(model).values() for name in names.values()}
    weights = read_weights(path_or_state_dict, container, known)
    report, entries = fit(model, weights)
    if strict:
        report.check()
    own = model.state_dict()
    if any(own[key].is_meta for key in entries):
        raise ValueError("model is on the meta device and cannot hold weights: model.to_empty(device='cpu') first")
    model.load_state_dict({key: value.reshape(own[key].shape) for key, value in entries.items()}, strict=False)
    return report


def to_dialect(model: nn.Module, dialect: str) -> dict[str, Tensor]:
    """The model's state dict with the names of another dialect.

    Args:
        model: a network of :mod:`sewsnn.models`, which ``DistributedDataParallel`` or ``torch.compile`` may wrap.
        dialect: one of :data:`sewsnn.models.DIALECTS`.

    Returns:
        A dictionary from the dialect's names to contiguous copies of the values on the CPU.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: there is no such dialect, or it has no names for this model; the message lists the possible
            dialects.

    Example:
        >>> net = sewsnn.models.create_model("sew_resnet18")
        >>> state = to_dialect(net, "authors")
    """
    model = unwrapped(model)
    names = names_in(model, dialect)
    return {names[key]: plain_copy(value) for key, value in model.state_dict().items()}


def save_checkpoint(
    model: nn.Module, path: str | os.PathLike, dialect: str = "sewsnn", container: str = "model"
) -> None:
    """Writes the model's weights to a file, with the names of any dialect.

    The file holds ``{container: state dict}``, or the state dict alone if ``container`` is empty. A path that ends in
    ``.safetensors`` gets that format, which has no containers. The file appears whole or not at all.

    The authors' code reads the container ``model``, or ``net`` for CIFAR10-DVS. The models of torchvision and
    SpikingJelly take the state dict alone.

    Args:
        model: a network of :mod:`sewsnn.models`, which ``DistributedDataParallel`` or ``torch.compile`` may wrap.
        path: the file to write. An existing file is replaced.
        dialect: one of :data:`sewsnn.models.DIALECTS`. Default ``"sewsnn"``.
        container: the key for the state dict; ``""``: no key. Default ``"model"``.

    Raises:
        TypeError: ``container`` is not a string, or ``model`` is not a module.
        ValueError: there is no such dialect, or it has no names for this model; the message lists the possible
            dialects.
        UserError: the file cannot be written.

    Example:
        >>> net = sewsnn.models.create_model("sew_resnet18")
        >>> save_checkpoint(net, "sew_resnet18.pt", dialect="torchvision", container="")  # doctest: +SKIP
    """
    if not isinstance(container, str):
        raise TypeError(f"container must be a str, got {type(container).__name__}")
    write_state(path, to_dialect(model, dialect), container)


def write_state(path: str | os.PathLike, state: dict[str, Tensor], container: str) -> None:
    """Writes a state dict for :func:`save_checkpoint`."""
    if safetensors.is_one(path):
        data = safetensors.write(path, state)
        write_atomic(Path(path), lambda file: file.write(data))
    else:
        save_tensors(Path(path), {container: state} if container else state)


def check_dialect(dialect: str) -> None:
    """Raises ValueError unless ``dialect`` is one of :data:`DIALECTS`."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect must be one of {', '.join(map(repr, DIALECTS))}, got {dialect!r}")


def names_in(model: nn.Module, dialect: str) -> dict[str, str]:
    """The model's names -> the names in ``dialect``.

    Raises:
        ValueError: there is no such dialect, or it has no names for this model; the message lists the possible
            dialects.
    """
    check_dialect(dialect)
    found = dialects(model)
    if dialect not in found:
        known = ", ".join(map(repr, found))
        raise ValueError(f"dialect {dialect!r} has no names for {type(model).__name__}, only {known} have")
    return found[dialect]


def fit(model: nn.Module, weights: Weights) -> tuple[LoadReport, dict[str, Tensor]]:
    """The entries that fit, by the model's names and with the file's values, and the report on all entries.

    Raises:
        CheckpointError: no entry fits.
    """
    own, state = model.state_dict(), weights.state
    dialect, names = detect(model, state)
    entries, mismatched = {}, {}
    for key, name in names.items():
        if name in state:
            why = _mismatch(state[name], own[key])
            if why:
                mismatched[name] = why
            else:
                entries[key] = state[name]
    if not entries and not mismatched:
        raise CheckpointError(
            f"{weights.source} has no entry of this {type(model).__name__} in any dialect "
            f"({', '.join(dialects(model))}): the file has {some(state)}, the model has {some(own)}"
        )
    absent = [key for key, name in names.items() if name not in state]
    missing = tuple(key for key in absent if not key.endswith("num_batches_tracked"))
    known = set(names.values())
    unexpected = tuple(name for name in state if name not in known)
    report = LoadReport(
        weights.source,
        dialect,
        weights.container,
        len(entries),
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
        kept=tuple(key for key in absent if key not in missing),
        constants=weights.constants,
        ignored=weights.ignored,
        notes=(*weights.notes, *_notes(model, weights, missing, unexpected)),
        names=names,
    )
    return report, entries


def _mismatch(value: Any, own: Tensor) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} instead of a tensor"
    if not is_dense(value):
        return "not a dense tensor with values"
    if value.is_floating_point() != own.is_floating_point() or value.is_complex():
        return f"{value.dtype} in the file, {own.dtype} in the model"
    if value.shape == own.shape or {tuple(value.shape), tuple(own.shape)} == {(), (1,)}:  # one number: a PLIF's w
        return _overflow(value, own.dtype)
    return f"{list(value.shape)} in the file, {list(own.shape)} in the model"


def _overflow(value: Tensor, dtype: torch.dtype) -> str | None:
    """Describes values that a conversion to ``dtype`` would turn into infinity; None: there are none."""
    if not value.is_floating_point() or value.dtype == dtype or not value.numel():
        return None
    if value.element_size() == 1:  # torch computes little with 8 bits
        try:
            value = value.float()
        except NotImplementedError:
            return f"{value.dtype} in the file, {dtype} in the model"
    finite = value[value.isfinite()]
    if finite.to(dtype).isfinite().all():
        return None
    largest = finite.abs().max()
    return f"values up to {largest:.4g}, the largest of the model's {dtype} is {torch.finfo(dtype).max:.4g}"


def _notes(model: nn.Module, weights: Weights, missing: tuple[str, ...], unexpected: tuple[str, ...]) -> Iterable[str]:
    if unexpected and all(name.endswith(".w") for name in unexpected):
        yield "note: the neurons of the file are PLIF and have a parameter w, those of the model have none"
    if missing and all(key.endswith(".w") for key in missing):
        yield "note: the neurons of the model are PLIF and have a parameter w, those of the file have none"
    # No weight depends on the connection: all entries fit a model with the wrong one.
    said = weights.settings.get("connect_f")
    styles = {module.style for module in model.modules() if isinstance(module, Block)}
    used = {style.connect_f for style in styles if style.residual == "sew"}
    if said is not None and used and used != {said}:
        yield f"note: the file was made with connect_f={said!r}, the model has {', '.join(map(repr, sorted(used)))}"


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and torch.compile."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def plain_copy(value: Tensor) -> Tensor:
    """A copy on the CPU with a storage of its own: torch.save would write a shared storage whole."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
