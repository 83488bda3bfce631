"""Checkpoints of any dialect into a network (:func:`load_checkpoint`) and out of one (:func:`save_checkpoint`)."""

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
    """What became of a checkpoint's entries.

    Attributes:
        source: the file, or ``state dict``.
        dialect: one of :data:`sewsnn.models.DIALECTS`; for ResNets ``torchvision`` stands for ``sewsnn`` as well.
        container: the file's key under which the weights are; None: the file is nothing but weights.
        mapped: entries that were loaded.
        missing: the model's entries, by its names, that are not in the file; they stay as they are.
        unexpected: the file's entries, by its names, that the model has no place for.
        mismatched: why an entry, by the file's name, does not fit: both shapes.
        kept: ``num_batches_tracked`` that an older file does not have; no error.
        constants: settings of surrogate functions, which older SpikingJelly kept as entries
            (``sn1.surrogate_function.alpha``): they are left out, and no error.
        ignored: the file's other keys.
        notes: what should be known and is no error.
        names: the model's names -> the file's.
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
        """Whether every entry of the model was loaded, and nothing was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def differences(self) -> list[str]:
        """One phrase for each kind of entry that does not fit; names are cut after a few."""
        found = []
        if self.missing:
            found.append(f"missing: {some(self._both_names(key) for key in self.missing)}")
        if self.unexpected:
            found.append(f"not in the model: {some(self.unexpected)}")
        if self.mismatched:
            found.append(f"does not fit: {some(f'{shown(key)}, {why}' for key, why in self.mismatched.items())}")
        return found

    def check(self) -> None:
        """Raises CheckpointError unless it is complete."""
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
            lines.append(f"not in the file, as in older ones: {len(self.kept)} x num_batches_tracked")
        if self.constants:
            lines.append(f"left out, settings of surrogate functions: {some(self.constants)}")
        if self.ignored:
            lines.append(f"not read: {some(self.ignored)}")
        return "\n  ".join([*lines, *self.notes])


def load_checkpoint(
    model: nn.Module,
    path_or_state_dict: str | os.PathLike | Mapping[str, Any],
    *,
    strict: bool = True,
    container: str | None = None,
) -> LoadReport:
    """Loads weights of any dialect (:mod:`sewsnn.models.dialects`) into ``model``; it is found by the entries' names.

    A file holds a state dict, or a dictionary with one: the authors' checkpoints, torchvision's weights, SpikingJelly's
    models, those of ``sewsnn train``. The first of these keys that has one is read: ``model``, ``net``, ``state_dict``,
    ``model_state_dict``, ``module``, ``model_ema``, ``state_dict_ema``; else the only key that has one. Files called
    ``.safetensors`` are read with that package. What ``DistributedDataParallel``, ``AveragedModel`` and
    ``torch.compile`` put into names is taken off, here and there. Values get the model's dtype and device. Weights of
    an ANN are where training may begin; its activations are no spikes.

    Files are read with ``weights_only=True``: besides tensors, numbers, text and collections of them only the
    ``argparse.Namespace`` that the authors' files have is let in.

    Args:
        model: a network of :mod:`sewsnn.models`, which may be wrapped by one of the two above.
        path_or_state_dict: a file, or what is in one.
        strict: every entry must fit. Else those that do are loaded, and the report has the others.
        container: the file's key to read, ``"model_ema"`` for a moving average; ``""``: the file is nothing but
            weights. None: see above.

    Returns:
        What was mapped, missing, unexpected; ``print(report)`` is readable.

    Raises:
        CheckpointError: the file cannot be read, or holds something else; an entry is missing, foreign, of another
            shape, or too large for the model's dtype: the message has names and shapes. The model is as before.
        TypeError, ValueError: an argument is wrong; the message names it.
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
    """The model's state dict in another dialect; contiguous copies on the CPU.

    Raises:
        ValueError: no such dialect, or none of this model; the message names those there are.
    """
    model = unwrapped(model)
    names = names_in(model, dialect)
    return {names[key]: plain_copy(value) for key, value in model.state_dict().items()}


def save_checkpoint(
    model: nn.Module, path: str | os.PathLike, dialect: str = "sewsnn", container: str = "model"
) -> None:
    """Writes the model's weights as ``{container: state dict}``, or, where it is empty, as the state dict alone; a file
    called ``.safetensors`` in that format, which has no containers.

    The file appears whole or not at all. The authors' code reads ``model``, for CIFAR10-DVS ``net``; torchvision's
    and SpikingJelly's models take the state dict alone.

    Raises:
        ValueError: as :func:`to_dialect`.
        TypeError: ``container`` is no text.
        UserError: the file cannot be written.
    """
    if not isinstance(container, str):
        raise TypeError(f"container must be a str, got {type(container).__name__}")
    write_state(path, to_dialect(model, dialect), container)


def write_state(path: str | os.PathLike, state: dict[str, Tensor], container: str) -> None:
    """The writing half of :func:`save_checkpoint`."""
    if safetensors.is_one(path):
        data = safetensors.write(path, state)
        write_atomic(Path(path), lambda file: file.write(data))
    else:
        save_tensors(Path(path), {container: state} if container else state)


def check_dialect(dialect: str) -> None:
    """Raises ValueError unless there is one of this name."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect must be one of {', '.join(map(repr, DIALECTS))}, got {dialect!r}")


def names_in(model: nn.Module, dialect: str) -> dict[str, str]:
    """The model's names -> those of ``dialect``.

    Raises:
        ValueError: no such dialect, or none of this model; the message names those there are.
    """
    check_dialect(dialect)
    found = dialects(model)
    if dialect not in found:
        known = ", ".join(map(repr, found))
        raise ValueError(f"dialect {dialect!r} has no form of {type(model).__name__}, only {known} have")
    return found[dialect]


def fit(model: nn.Module, weights: Weights) -> tuple[LoadReport, dict[str, Tensor]]:
    """The entries that fit, by the model's names and as they are in the file, and the report on all.

    Raises:
        CheckpointError: none fits.
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
            f"({', '.join(dialects(model))}): it has {some(state)}, the model {some(own)}"
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
    """What a conversion would turn into infinity."""
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
        yield "note: the file's neurons are PLIF, whose w the model's do not have"
    if missing and all(key.endswith(".w") for key in missing):
        yield "note: the model's neurons are PLIF, whose w the file does not have"
    # The connection is in no weight: with the wrong one everything fits.
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
    """Without what else lies in its storage, which torch.save would write as well."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
