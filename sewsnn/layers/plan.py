"""Answers whether one op may stand for a batch norm, a neuron and a connection, and what it takes: :func:`plan`."""

import contextlib
from collections.abc import Container, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sewsnn.layers.connection import NOT_CONNECTED, Connection
from sewsnn.layers.norm import Norm, OneCall, check_norm, for_one_call
from sewsnn.neuron import BaseNode
from sewsnn.ops import pool
from sewsnn.ops.load import resolve_backend
from sewsnn.ops.options import ADD_BEFORE, NONE
from sewsnn.ops.pool import MAX_T
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan

#: the classes of norms that compute a plain batch norm
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ATAN = ATan(2.0)
_CALLED = frozenset({"forward", "_conv_forward", "__call__", "_call_impl"})  # methods that a module's call runs
_by_modules = ContextVar("by_modules", default=False)  # one value per thread: two threads may export at once


def has_hooks(module: nn.Module) -> bool:
    """Returns whether the module has hooks, so that its call must take place."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_altered(module: nn.Module) -> bool:
    """Returns whether a call of the module does more than its class defines: it has hooks or a replaced method."""
    return has_hooks(module) or not _CALLED.isdisjoint(module.__dict__)


def must_be_called(module: nn.Module) -> bool:
    """Returns whether the call itself must take place: the module is altered, or global hooks exist."""
    return is_altered(module) or torch.nn.modules.module._has_any_global_hook()


@contextlib.contextmanager
def by_modules() -> Iterator[None]:
    """While this context is active, no op replaces several modules: they run one after the other.

    A graph that is traced inside it contains the modules' own operations.
    """
    before = _by_modules.set(True)
    try:
        yield
    finally:
        _by_modules.reset(before)


def _modules_are_asked_for() -> bool:
    return _by_modules.get()


_modules_are_asked_for._dynamo_marked_constant = True  # torch.compile treats the answer as a constant while it traces


def may_skip_calls(norm: nn.Module | None, neuron: nn.Module | None, norms: Container[type] = NORMS) -> bool:
    """Returns whether an op may stand for the calls of the modules: it knows what they compute, and nobody listens.

    ``norms``: the classes of norms whose call computes a plain batch norm, besides :class:`sewsnn.layers.norm.Norm`.
    """
    if _modules_are_asked_for() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if torch.nn.modules.module._has_any_global_hook():  # global hooks need the call of every module
        return False
    if norm is not None and not isinstance(norm, Norm) and (type(norm) not in norms or is_altered(norm)):
        return False
    return neuron is None or (isinstance(neuron, BaseNode) and not is_altered(neuron) and neuron.can_be_fused())


# ---- and with what


class Plan(NamedTuple):
    """What an op takes besides z and the shortcut.

    Attributes:
        norm: the batch norm; None: no normalisation.
        one_call: its arguments of ``bn_neuron_train``; None: the norm needs several calls, or there is none.
        neuron: the neuron; None: no neuron.
        spec: what the neuron computes; None: no neuron.
        learnt: its learnt parameters as the ops take them; None: it has none.
        connect: the connection with the shortcut, as the ops take it.
        T: number of time-steps for which a still image is shown; 0: z has a time axis.
        store_v: the neuron stores its final membrane potential.
        pack: also return the packed spikes.
        return_skip: also return ``skip``.
    """

    norm: nn.Module | None
    one_call: OneCall | None
    neuron: nn.Module | None
    spec: NeuronSpec | None
    learnt: Tensor | None
    connect: int
    T: int
    store_v: bool
    pack: bool
    return_skip: bool


def plan(
    z_seq: Tensor,
    norm: nn.Module | None,
    neuron: nn.Module | None,
    connection: Connection = NOT_CONNECTED,
    *,
    T: int | None = None,
    return_skip: bool = False,
    pack_spikes: bool = False,
    pooled: bool = False,
    norms: Container[type] = NORMS,
) -> Plan | None:
    """Answers whether one op may stand for the modules, and with what arguments. It changes nothing.

    Args:
        z_seq: as in :func:`sewsnn.layers.bn_neuron`, checked.
        norm: the batch norm; None: no normalisation.
        neuron: the neuron; None: no neuron.
        connection: the connection with the shortcut.
        T: number of time-steps for which a still image z_seq is shown; None: z_seq has a time axis.
        return_skip: also return ``skip``.
        pack_spikes: also return the packed spikes, where the values are spikes.
        pooled: the op is the one that ends with max pooling (:func:`sewsnn.layers.bn_neuron_pool`).
        norms: the classes of norms whose call computes a plain batch norm.

    Returns:
        What the op takes; None: the modules must run.

    Raises:
        sewsnn.BackendError: the neuron asks for a backend that cannot run here.
        TypeError, ValueError: the op cannot take the numbers or the device of the norm, or a channel has one value.
    """
    if not may_skip_calls(norm, neuron, norms):
        return None
    if neuron is None:
        native_runs = resolve_backend("auto", z_seq.device, _ATAN) == "native"
    else:
        native_runs = neuron.runs_native(z_seq.device)
    if not native_runs:
        return None
    spec = None if neuron is None else neuron.spec()
    store_v = isinstance(neuron, BaseNode) and neuron.store_v and not torch.compiler.is_exporting()
    if pooled and (store_v or T > MAX_T or not pool.has(spec)):
        return None
    state = state_dtype(z_seq.dtype)
    one_call = None
    if norm is not None:
        check_norm(norm, z_seq, T or 0)
        if not (pooled or torch.compiler.is_compiling()):
            one_call = for_one_call(norm, state)
    learnt = None if neuron is None else neuron.learnt_parameters(state)
    binary = neuron is not None and neuron.binary_spikes and connection.number in (NONE, ADD_BEFORE)
    pack = pack_spikes and binary and (z_seq.numel() if T else z_seq.numel() // len(z_seq)) % 8 == 0
    return Plan(norm, one_call, neuron, spec, learnt, connection.number, T or 0, store_v, pack, return_skip)
