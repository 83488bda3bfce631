"""Exports networks to files that run without their Python code: :func:`export_model`.

>>> import sewsnn.export
>>> report = sewsnn.export.export_model(net, example, "net.onnx")  # doctest: +SKIP
"""

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

#: format -> ending of its files
FORMATS = {"torch": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True)
class ExportReport:
    """The exported file, and the result of its check against the model. ``print(report)`` is readable.

    Attributes:
        path: the file.
        format: one of :data:`FORMATS`.
        details: version of the format, and what a program needs to load the file.
        bytes: size of the file.
        input_shape: shape of the input; ``"batch"`` stands for any number of samples.
        folded: True if batch norm is folded into the weights of the convolutions.
        checked_with: the program that ran the file in the check.
        agreement: how far spikes and logits of the file and of the model agree.
        notes: remarks that are no errors.
    """

    path: str
    format: str
    details: str
    bytes: int
    input_shape: tuple[int | str, ...]
    folded: bool
    checked_with: str
    agreement: Agreement
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.input_shape))
        lines = [
            f"{self.path}: {self.details}, {self.bytes / 1e6:.1f} MB, input [{shape}], batch norm "
            f"{'folded into the weights' if self.folded else 'not folded'}",
            f"checked with {self.checked_with}: {self.agreement}",
        ]
        return "\n  ".join([*lines, *self.notes])


def check_target(path: str | os.PathLike, format: str | None = None, native: bool = False) -> str:
    """Checks early, before minutes of tracing, that a file can be written, and returns its format.

    Args:
        path: the file to write.
        format: one of :data:`FORMATS`. Default None: the ending of ``path`` tells it.
        native: the file is to keep sewsnn's own ops, which only ``"torch"`` can. Default False.

    Returns:
        The format.

    Raises:
        ValueError: neither ``format`` nor ``path`` tells one of :data:`FORMATS`, or the format cannot keep native ops.
        UserError: a package is missing, or ``path`` is a folder or in a folder that does not exist.
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
    """Exports ``model`` to a file that computes ``model(example)`` without the model's code, and checks the file.

    The file contains the network in evaluation mode with its neurons at rest. The model itself is left unchanged.

    Formats: ``"torch"`` is a program of torch.export (``torch.export.load(path).module()(x)``); its neurons are plain
    torch operations, and it needs only torch. ``"onnx"`` is an ONNX graph from ``x`` to ``logits``. Both unroll the
    time-steps: the graph has T copies of each neuron's charge, fire and reset. T, height and width are therefore fixed.

    Check: before the file is put in place, it is read back and run on ``example``, and with a free number of samples
    once more on one sample more. Its spikes, layer by layer, and its logits must be those of the model. Rounding
    differs (another order of sums, batch norm in the weights), and a neuron whose membrane potential is within rounding
    of the threshold may then fire in one and not in the other. In the first layer in which spikes differ, a share of up
    to ``max_flipped`` may differ; differences in later layers follow from these. If no spike differs, the logits must
    agree up to the rounding of a sum.

    Args:
        model: a network of :mod:`sewsnn.models`, or any module of one tensor that torch.export can trace.
        example: input ``[N, C, H, W]`` or ``[T, N, C, H, W]`` with N >= 1, in the size and dtype for which the file is.
            The check runs on it, so use values that are typical of the network's input.
        path: the file to write. It appears whole or not at all, and replaces an existing file.
        format: one of :data:`FORMATS`. Default None: the ending of ``path`` tells it.
        dynamic: the file takes any number of samples. Default True. False: only that of the example.
        batch_dim: the dimension that counts samples. Default None: 1 if the example has an odd number of dimensions
            (with a time axis), else 0.
        native: keep sewsnn's own ops (``"torch"`` only). This is fast, but the program that loads the file must
            ``import sewsnn`` first. Default False.
        fold: fold batch norm into the convolutions' weights (:func:`sewsnn.layers.fuse`). Default None: fold if this
            changes no spike on the example.
        max_flipped: largest share of different spikes in the first layer that differs, in [0, 1]. Default 1e-4. 0:
            every spike must be that of the model.
        progress: show on stderr the current step and the number of images per second. Default False.

    Returns:
        An :class:`ExportReport`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        UserError: a package is missing, the network cannot be expressed in the format, the result does not compute what
            the model computes, or the file cannot be written. No file is written then.

    Example:
        >>> net = sewsnn.models.create_model("sew_resnet18")
        >>> report = export_model(net, torch.randn(1, 3, 224, 224), "sew_resnet18.onnx")  # doctest: +SKIP
    """
    _check(model, example, max_flipped)
    format = check_target(path, format, native)
    dim = batch_dimension(example, batch_dim)
    example = example.detach().cpu()
    samples = example.shape[dim]
    with Progress("running the network", 5 if dynamic else 4, quiet=not progress) as bar:
        network, expected, folded, notes = prepared(model, example, native=native, fold=fold)
        bar.next("tracing the network", samples)
        # torch.export would treat a single sample as a constant.
        traced = repeated(example, dim, 2) if dynamic and samples < 2 else example
        write = {"torch": torch_format, "onnx": onnx_format}[format].write
        data, load, details = write(network, traced, dim if dynamic else None, native)
        bar.next("reading the file back", 0)
        found, checked_with = load(data)
        bar.next("checking the file", 0)
        agreement = _agreement(network, example, expected, found, max_flipped, str(path))
        if dynamic:
            bar.next("checking the file with one more sample", samples)
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
        raise UserError(f"{path} is not written: the exported network does not compute what the model does: {problem}")
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
