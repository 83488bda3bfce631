"""Fuses batch norm and neuron into one op in SpikingJelly's containers and networks. Imports SpikingJelly."""

import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from sewsnn.convert import nodes
from sewsnn.convert.obstacles import patched
from sewsnn.convert.state import STATE_FOLLOWS_INPUT
from sewsnn.layers.connection import NOT_CONNECTED, Connection
from sewsnn.layers.fused import by_op
from sewsnn.layers.plan import Plan, must_be_called, plan

#: SpikingJelly's norms of ``[T, N, C, ...]`` -> the numbers of dimensions that they take in step mode "m"
_NORMS = {
    layer.BatchNorm1d: (3, 4) if STATE_FOLLOWS_INPUT else (4,),
    layer.BatchNorm2d: (5,),
    layer.BatchNorm3d: (6,),
}
#: norms of ``[T * N, C, ...]``, inside SeqToANNContainer
_FLAT_NORMS = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
    layer.BatchNorm1d: (2, 3),
    layer.BatchNorm2d: (4,),
    layer.BatchNorm3d: (5,),
}


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
    planned = None
    one = type(norm) in _NORMS and norm.step_mode == "m" and z_seq.dim() in _NORMS[type(norm)]
    alike = shortcut is None or (shortcut.shape == z_seq.shape and shortcut.dtype == z_seq.dtype)
    if one and (alike or not connection.before):
        planned = _plan(z_seq, norm, node, connection if alike else NOT_CONNECTED)
    if planned is None:
        y = norm(z_seq)
        s_seq = node((y + shortcut).to(y.dtype) if connection.before else y)  # SpikingJelly adds in place
    elif alike:
        return by_op(nodes.as_stacked(z_seq), shortcut, planned).out
    else:
        s_seq = by_op(nodes.as_stacked(z_seq), None, planned).out
    return connection.after_neuron(s_seq, shortcut)


def _plan(z_seq: Tensor, norm: nn.Module, node: nn.Module, connection: Connection = NOT_CONNECTED) -> Plan | None:
    """What the op for these modules takes; None: SpikingJelly's modules must run."""
    # With a wrong number of channels the norm itself raises its error. The norm takes an empty batch; the op does not.
    channels = z_seq.shape[2] == norm.num_features and z_seq.numel() > 0
    if type(node) not in nodes.CLASSES.values() or not channels:
        return None
    return plan(z_seq, norm, node, connection, norms=_FLAT_NORMS)


def _container_neuron(x_seq: Tensor, container: nn.Sequential, node: nn.Module) -> Tensor:
    """Runs a SeqToANNContainer that ends with a norm, and the neuron after it."""
    *before, norm = container
    plain = type(norm) in _FLAT_NORMS and getattr(norm, "step_mode", "s") == "s"
    if not plain or x_seq.dim() < 3 or must_be_called(container):
        return node(container(x_seq))
    z = x_seq.flatten(0, 1)
    for module in before:
        z = module(z)
    z_seq = z.unflatten(0, x_seq.shape[:2])
    planned = _plan(z_seq, norm, node) if z.dim() in _FLAT_NORMS[type(norm)] else None
    if planned is None:
        return node(norm(z).unflatten(0, x_seq.shape[:2]))
    return by_op(nodes.as_stacked(z_seq), None, planned).out


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that runs a neuron of :mod:`sewsnn.convert.nodes` and the norm before it as one op."""

    def forward(self, input: Tensor) -> Tensor:
        """Runs all modules in order.

        Args:
            input: input of the first module.

        Returns:
            The output of the last module.
        """
        x, modules = input, list(self)
        while modules:
            module, *modules = modules
            if not modules or type(modules[0]) not in nodes.CLASSES.values():
                x = module(x)
            elif type(module) in _NORMS:
                x = norm_neuron(x, module, modules.pop(0))
            elif type(module) is layer.SeqToANNContainer and len(module):
                x = _container_neuron(x, module, modules.pop(0))
            else:
                x = module(x)
        return x


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, str]]:
    """Yields norm, neuron and connection of each group that ``module`` can run as one op."""
    if type(module) is not FusedSequential:
        yield from (triple for triple in module.fused_triples() if type(triple[0]) in _NORMS)
        return
    for norm, node in pairwise(module):
        if type(norm) is layer.SeqToANNContainer and len(norm) and type(norm[-1]) in _FLAT_NORMS:
            yield norm[-1], node, ""
        elif type(norm) in _NORMS:
            yield norm, node, ""


def why_alone(model: nn.Module, name: str, node: nn.Module) -> str:
    """Why no op can join a converted neuron and a batch norm before it."""
    if not node.may_fuse:
        return "it stands in more than one place of the model"
    if not name:
        return "it is the whole model"
    parent = model.get_submodule(name.rpartition(".")[0])
    kind = _originals().get(type(parent), type(parent))
    if patched(parent):
        return f"a method of the {kind.__name__} around it was replaced"
    if kind in _classes() and kind is not nn.Sequential:
        return f"{kind.__name__} has no batch norm of SpikingJelly right before it that sewsnn can fuse"
    if kind is not nn.Sequential:
        return f"only the class {kind.__name__} knows how its modules are connected"
    modules = list(parent)
    place = next(i for i, module in enumerate(modules) if module is node)
    if place == 0:
        return "it is the first module of its nn.Sequential"
    before = type(modules[place - 1])
    if issubclass(before, nn.modules.batchnorm._BatchNorm):
        return f"sewsnn fuses SpikingJelly's batch norms of [T, N, C, ...], not {before.__module__}.{before.__name__}"
    return f"the module before it is not a batch norm, but {before.__name__}"


def _originals() -> dict[type, type]:
    return {swapped: original for original, swapped in _classes().items()}


def _classes() -> dict[type, type]:
    """The classes to swap. A model can only contain modules of SpikingJelly that were imported."""
    classes = {nn.Sequential: FusedSequential}
    for name in ("sew_resnet", "spiking_resnet"):
        if f"spikingjelly.activation_based.model.{name}" in sys.modules:
            classes.update(import_module(f"sewsnn.convert.{name}").CLASSES)
    return classes


def set_fusion(model: nn.Module, wanted: bool) -> dict[nn.Module, str]:
    """Swaps the class of each module that holds a norm and a neuron for one op, or swaps it back.

    Returns:
        The fused neurons, each with the names of the modules in its op.
    """
    classes = _classes()
    originals = _originals()
    names = {module: name for name, module in model.named_modules()}
    fused = {}
    for module in names:
        original = originals.get(type(module), type(module))
        if original not in classes or patched(module):
            continue
        module.__class__ = classes[original]
        found = {
            node: f"{names[norm]}{connection}"
            for norm, node, connection in _pairs(module)
            if wanted and type(node) in nodes.CLASSES.values() and node.may_fuse
        }
        if not found:
            module.__class__ = original
        fused.update(found)
    return fused
