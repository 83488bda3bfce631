"""Prepares the network for the export: on the CPU, in evaluation mode, at rest, with batch norm in the weights."""

import copy

import torch
from torch import Tensor, nn

from sewsnn.errors import UserError
from sewsnn.export.agreement import Run, compare, nodes_of, run
from sewsnn.functional import reset_net
from sewsnn.layers import fuse
from sewsnn.models.checkpoint import unwrapped
from sewsnn.ops.load import NATIVE_ERROR


def batch_dimension(example: Tensor, batch_dim: int | None) -> int:
    """The dimension of the example that counts samples.

    Raises:
        TypeError, ValueError: ``batch_dim`` is not a dimension of the example.
    """
    if batch_dim is None:
        return example.dim() % 2
    if isinstance(batch_dim, bool) or not isinstance(batch_dim, int):
        raise TypeError(f"batch_dim must be an int or None, got {type(batch_dim).__name__}")
    if not 0 <= batch_dim < example.dim():
        raise ValueError(f"batch_dim must be a dimension of the example, 0 to {example.dim() - 1}, got {batch_dim}")
    return batch_dim


def repeated(x: Tensor, dim: int, size: int) -> Tensor:
    """``size`` samples along ``dim``: the samples of x, repeated."""
    return x.index_select(dim, torch.arange(size) % x.shape[dim])


def prepared(
    model: nn.Module, example: Tensor, *, native: bool, fold: bool | None
) -> tuple[nn.Module, Run, bool, list[str]]:
    """Prepares the export.

    Returns:
        A copy of the network to trace, the model's own result on the example, whether batch norm is in the copy's
        weights, and notes for the report.

    Raises:
        UserError: the model cannot run on the example, or cannot be exported with these options.
    """
    model = _not_compiled(copy.deepcopy(unwrapped(model))).cpu().eval()
    reset_net(model)
    _check_nodes(model)
    if native and NATIVE_ERROR:
        raise UserError(f"native: sewsnn's ops are not available: {NATIVE_ERROR}")
    try:
        expected = run(model, example)
    except Exception as error:
        raise UserError(f"the model cannot run on an example of shape {list(example.shape)}: {error}") from error
    if not isinstance(expected.output, Tensor):
        raise UserError(f"the model must return one tensor, but it returns {type(expected.output).__name__}")
    if not expected.output.isfinite().all():
        raise UserError("the model's own output of the example is not finite: the export could not be checked with it")
    plain = _with_backend(copy.deepcopy(model), "native" if native else "torch")
    if fold is False or not _has_norm(model):
        return plain, expected, False, []
    try:
        folded = fuse(plain)
    except ValueError as error:
        if fold:
            raise UserError(f"fold: {error}") from None
        return plain, expected, False, [f"note: {error}"]
    if fold:
        return folded, expected, True, []
    change = compare(expected, run(folded, example))
    if change.flipped or change.problem(0.0):
        note = f"note: batch norm is not folded: in the weights its rounding would change {change.flipped:,} spikes"
        return plain, expected, False, [note]
    return folded, expected, True, []


def _check_nodes(model: nn.Module) -> None:
    """Raises UserError if a module keeps its state: an exported graph holds no state between calls."""
    if getattr(model, "step_mode", "m") != "m":
        raise UserError("the model is in single-step mode: call functional.set_step_mode(model, 'm') first")
    for name, module in model.named_modules():
        if getattr(module, "keeps_state", False):
            raise UserError(
                f"{name or 'the model'} keeps its state from call to call (step_mode='s' or keep_state=True), but an "
                "exported graph cannot keep a state: change these settings"
            )


def _not_compiled(model: nn.Module) -> nn.Module:
    """Replaces compiled modules by the modules inside, because hooks cannot see the neurons of a compiled one."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if unwrapped(child) is not child:
                module._modules[name] = unwrapped(child)
    return model


def _with_backend(model: nn.Module, backend: str) -> nn.Module:
    for node in nodes_of(model):
        node.backend = backend
    return model


def _has_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules())
