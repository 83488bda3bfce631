"""Networks as files that run elsewhere: :func:`export_model`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sewsnn.errors import UserError
from sewsnn.export import onnx_format, torch_format
from sewsnn.export.agreement import Agreement, Run, compare, run
from sewsnn.export.prepare import batch_dimension, prepared, repeated
from sewsnn.files import write_atomic
from sewsnn.progress import Progress

__all__ = ["FORMATS", "ExportReport", "check_target", "export_model"]

#: format -> how its files end
FORMATS = {"torch": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was seen to compute what the model does. ``str()`` of it is readable."""

    path: str
    format: str  #: one of :data:`FORMATS`
    details: str  #: version of the format, and what it needs to be loaded
    bytes: int
    input_shape: tuple[int | str, ...]  #: ``"batch"`` where any number will do
    folded: bool  #: batch norm is in the weights of the convolutions
    checked_with: str
    agreement: Agreement
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.input_shape))
        lines = [
            f"{self.path}: {self.details}, {self.bytes / 1e6:.1f} MB, input [{shape}], batch norm "
            f"{'folded into the weights' if self.folded else 'as it is'}",
            f"checked with {self.checked_with}: {self.agreement}",
        ]
        return "\n  ".join([*lines, *self.notes])


def check_target(path: str | os.PathLike, format: str | None = None, native: bool = False) -> str:
    """The format to write: as said, else as the file's name ends. What would fail after minutes of tracing fails here.

    Raises:
        ValueError: neither tells one of :data:`FORMATS`, or it has no native ops.
        UserError: a package is missing, or there can be no such file.
    """
    if format is None:
        format = next((name for name, ending in FORMATS.items() if ending == Path(path).suffix), None)
        if format is None:
            raise ValueError(f"format must be given, since {path} ends in none of {', '.join(FORMATS.values())}")
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    if native and format != "torch":
        raise ValueError(f"native keeps sewsnn's own ops, which format {format!r} does not have")
    if format == "onnx":
        onnx_format.check_packages()
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: expected the name of a file to write")
    if not Path(path).parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {Path(path).parent}")
    return format


@torch.no_grad()
def export_model(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike,
    format: str | None = None,
    *,
    dynamic: bool = True,
    batch_dim: int | None = None,
    native: bool = False,
    fold: bool | None = None,
    max_flipped: float = 1e-4,
    progress: bool = False,
) -> ExportReport:
    """Writes ``model``, in evaluation mode and its neurons at rest, to a file that computes ``model(example)`` without
    the model's code. The model is left as it is.

    ``torch``: a program of torch.export (``torch.export.load(path).module()(x)``); its neurons are plain torch
    operations, and nothing but torch is needed. ``onnx``: an ONNX graph from ``x`` to ``logits``. In both the
    time-steps are written out, T copies of each neuron's charge, fire and reset: T is fixed, as are height and width.

    Before the file is put in place it is read back and run on ``example``, and once more on another number of samples
    where that is free. Its spikes, layer by layer, and logits must be the model's. Rounding differs (another order of
    sums, batch norm in the weights), and a potential within rounding of the threshold may then fire in one and not in
    the other: in the first layer in which a sample's spikes differ, a share of up to ``max_flipped`` may; what differs
    in later layers follows from it. Where none differs, the logits must agree to a sum's rounding.

    Args:
        model: a network of :mod:`sewsnn.models`, or any module of one tensor that torch.export can trace.
        example: ``[N, C, H, W]`` or ``[T, N, C, H, W]``, of the size and dtype the file is for; N >= 1. Numbers of the
            kind the network is for: it is what the check runs on.
        path: the file; it appears whole or not at all, in place of one that is there.
        format: one of :data:`FORMATS`; None: as ``path`` ends.
        dynamic: any number of samples; else that of the example.
        batch_dim: which dimension counts samples; None: 1 where the example has an odd number of dimensions (with
            time), else 0.
        native: keep sewsnn's own ops (``torch`` only): fast, and the reader must ``import sewsnn`` first.
        fold: batch norm into the convolutions' weights (:func:`sewsnn.layers.fuse`); None: if on the example no spike
            changes by it.
        max_flipped: see above; 0: every spike must be the model's.
        progress: show on stderr how far it is, and how many images a second are computed.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        UserError: a package is missing, the network cannot be expressed, the result computes something else, or the
            file cannot be written: nothing is.
    """
    _check(model, example, max_flipped)
    format = check_target(path, format, native)
    dim = batch_dimension(example, batch_dim)
    example = example.detach().cpu()
    samples = example.shape[dim]
    with Progress("the network itself", 5 if dynamic else 4, quiet=not progress) as bar:
        network, expected, folded, notes = prepared(model, example, native=native, fold=fold)
        bar.next("as a graph", samples)
        # One sample would be taken for a constant.
        traced = repeated(example, dim, 2) if dynamic and samples < 2 else example
        write = {"torch": torch_format, "onnx": onnx_format}[format].write
        data, load, details = write(network, traced, dim if dynamic else None, native)
        bar.next("reading it back", 0)
        found, checked_with = load(data)
        bar.next("checking it", 0)
        agreement = _agreement(network, example, expected, found, max_flipped, str(path))
        if dynamic:
            bar.next("checking it with one sample more", samples)
            other = repeated(example, dim, samples + 1)
            more = _agreement(network, other, run(network, other), found, max_flipped, str(path))
            agreement = agreement.joined(more)
    write_atomic(Path(path), lambda file: file.write(data))
    shape = tuple("batch" if dynamic and i == dim else size for i, size in enumerate(example.shape))
    return ExportReport(str(path), format, details, len(data), shape, folded, checked_with, agreement, tuple(notes))


def _agreement(network, x: Tensor, expected: Run, found: Callable[[Tensor], Run], max_flipped: float, path: str):
    agreement = compare(expected, found(x))
    problem = agreement.problem(max_flipped)
    if problem:
        raise UserError(f"{path} is not written: what would be in it computes something else than the model: {problem}")
    return agreement


def _check(model, example, max_flipped) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    if not isinstance(example, Tensor):
        raise TypeError(f"example must be a tensor, got {type(example).__name__}")
    if example.dim() < 2 or example.numel() == 0:
        raise ValueError(f"example must be a batch that is not empty, got shape {list(example.shape)}")
    if isinstance(max_flipped, bool) or not isinstance(max_flipped, int | float):
        raise TypeError(f"max_flipped must be a number, got {type(max_flipped).__name__}")
    if not 0 <= max_flipped <= 1:
        raise ValueError(f"max_flipped must be a share from 0 to 1, got {max_flipped}")
