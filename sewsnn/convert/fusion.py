"""Lets batch norms defer their results and max poolings use the op; SpikingJelly's residual blocks include the
connection in the op."""

import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise

from torch import Tensor, nn

from sewsnn.convert import norms, poolings
from sewsnn.convert.bridge import Bridge
from sewsnn.convert.deferred import plain
from sewsnn.convert.joined import as_stacked
from sewsnn.convert.norms import DeferringNorm
from sewsnn.convert.obstacles import patched
from sewsnn.layers.connection import NOT_CONNECTED, Connection
from sewsnn.layers.fused import by_op
from sewsnn.layers.plan import plan


def norm_neuron(
    z_seq: Tensor,
    norm: nn.Module,
    node: nn.Module,
    shortcut: Tensor | None = None,
    connection: Connection = NOT_CONNECTED,
) -> Tensor:
    """``g(SN(BN(z)), S)`` as in :func:`sewsnn.layers.bn_neuron`.

    It runs in one op where the op computes what SpikingJelly's modules would compute, else these modules run.
    """
    planned, shortcut = None, plain(shortcut)
    alike = shortcut is None or (shortcut.shape == z_seq.shape and shortcut.dtype == z_seq.dtype)
    joins = isinstance(norm, DeferringNorm) and isinstance(node, Bridge) and norm.over_time
    if joins and (alike or not connection.before) and type(z_seq) is Tensor and norm.may_be_skipped(z_seq):
        planned = plan(z_seq, norm, node, connection if alike else NOT_CONNECTED, norms=(type(norm),))
    if planned is None:
        y = norm(z_seq)
        s_seq = node((y + shortcut).to(y.dtype) if connection.before else y)  # SpikingJelly adds in place
        return connection.after_neuron(s_seq, shortcut)
    node.count_call(norm.place + (_words(connection) if alike else ""))
    if alike:
        return by_op(as_stacked(z_seq), shortcut, planned).out
    return connection.after_neuron(by_op(as_stacked(z_seq), None, planned).out, shortcut)


def _words(connection: Connection) -> str:
    """The connection in the report, after the name of the norm."""
    if connection.f is None:
        return ""
    return f", {connection.f} before the neuron" if connection.before else f", {connection.f}"


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, str]]:
    """Yields norm, neuron and connection of each group in the module that will run as one op in most calls."""
    if hasattr(module, "fused_triples"):
        yield from module.fused_triples()
    elif isinstance(module, nn.Sequential):
        for before, node in pairwise(module):
            while isinstance(before, nn.Sequential) and len(before):
                before = before[-1]
            yield before, node, ""


def why_alone(model: nn.Module, name: str, node: nn.Module) -> str:
    """Why a converted neuron is not known to join a batch norm before the first batch."""
    if not node.may_fuse:
        return "it stands in more than one place of the model"
    if not any(isinstance(module, DeferringNorm) for module in model.modules()):
        return "the model has no batch norm that sewsnn can fuse"
    if name:
        parent = model.get_submodule(name.rpartition(".")[0])
        if type(parent) is nn.Sequential and node is not parent[0]:
            before = parent[next(i for i, module in enumerate(parent) if module is node) - 1]
            if issubclass(type(before), nn.modules.batchnorm._BatchNorm):
                return norms.why_not(before)
            if not len(list(before.children())):
                return f"the module before it is not a batch norm, but {type(before).__name__}"
    return "unknown before the first batch: call report.refresh() after it"


def _originals() -> dict[type, type]:
    return {swapped: original for original, swapped in _blocks().items()}


def _blocks() -> dict[type, type]:
    """The classes of blocks to swap. A model can only contain modules of SpikingJelly that were imported."""
    classes = {}
    for name in ("sew_resnet", "spiking_resnet"):
        if f"spikingjelly.activation_based.model.{name}" in sys.modules:
            classes.update(import_module(f"sewsnn.convert.{name}").CLASSES)
    return classes


def set_fusion(model: nn.Module, wanted: bool) -> dict[nn.Module, str]:
    """Swaps the classes of batch norms, max poolings and residual blocks, so that neurons join batch norms and pooling
    uses the op; or swaps them back.

    Returns:
        The neurons that are known to join a batch norm, each with the names of the modules in its op.
    """
    blocks, originals = _blocks(), _originals()
    names = {module: name for name, module in model.named_modules()}
    joining = wanted and any(isinstance(module, Bridge) and module.may_fuse for module in names)
    for module, name in names.items():
        norms.set_deferring(module, name, joining)
        poolings.set_pooling(module, joining)
    fused = {}
    for module in names:
        original = originals.get(type(module), type(module))
        if patched(module):
            continue
        module.__class__ = blocks.get(original, original)
        found = {
            node: f"{names[norm]}{connection}"
            for norm, node, connection in _pairs(module)
            if wanted and isinstance(node, Bridge) and node.may_fuse and isinstance(norm, DeferringNorm)
        }
        if not found:
            module.__class__ = original
        fused.update(found)
    return fused
