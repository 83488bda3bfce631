"""Batch norm + neuron + connection in one op: :func:`bn_neuron`; the stem, with max pooling: :func:`bn_neuron_pool`."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from sewsnn import checks
from sewsnn.layers import fusing
from sewsnn.neuron import BaseNode
from sewsnn.ops import bn as native
from sewsnn.ops import pool as native_pool
from sewsnn.ops.reference import CONNECT, state_dtype


def bn_neuron(
    z_seq: Tensor,
    bn: nn.Module | None,
    neuron: nn.Module | None,
    shortcut: Tensor | None = None,
    *,
    connect_f: str | None = None,
    connect_before: bool = False,
    T: int | None = None,
    two: bool = False,
    pack_spikes: bool = False,
    fused: bool = True,
) -> native.Output:
    """``out = g(SN(BN(z)), S)``: batch norm, the neuron over all T, and the connection, in one op where that can be.

        y = (z - mean) weight / sqrt(var + eps) + bias      mean and var over T, N and space
        A = SN(y)
        out = A (None), A + S (ADD), A S (AND), S (1 - A) (IAND)
        out = SN(y + S)                                     ADD with ``connect_before``: the order of Spiking ResNet

    Backward recomputes the neuron: kept are z and the statistics (also S, where its values matter; for T > 16 every
    16th potential). Statistics, potentials and sums are in float32 (float64 for float64), whatever the dtype of z_seq
    is, and nothing is rounded between the convolution's output and out. Sums are taken in a fixed order: the same bits
    every time.

    The modules themselves run, one after the other, where the op cannot stand for them: hooks on them, a norm or a
    neuron of another class, a kept state, single-step mode, ``store_v_seq``, a surrogate of your own, ``torch.func``.

    Args:
        z_seq: ``[T, N, C, ...]``, the output of a convolution, in any dense order (channels_last is the fastest).
        bn: ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm`` or :class:`BNNeuron`; None or ``nn.Identity``: y = z.
        neuron: a node of :mod:`sewsnn.neuron`; None: A = y.
        shortcut: S, of the shape and dtype of z_seq.
        connect_f: None, ``"ADD"``, ``"AND"`` or ``"IAND"`` (main paper, Table 1).
        T: z_seq is a still image ``[N, C, ...]``: normalised once, shown T times.
        two: return ``skip``, too: the numbers of out again, for a second reader (the next block's shortcut). The two
            gradients are then added inside backward, which saves a pass over memory.
        pack_spikes: return ``bits``, too: spike i (in the order of out's memory) of a time-step is bit i % 8 of byte
            i / 8. They must be spikes, 8 in a byte: no connection after the neuron, N C H W a multiple of 8. None where
            that is not so, or the op cannot be used.
        fused: False: run the modules.

    Returns:
        ``(out, skip, v, bits)``, None for what was not asked for. The neuron's ``v`` is set as it would set it.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        RuntimeError: z_seq has values that are not finite (in training on the CPU; on a GPU one would have to wait for
            the answer). On either device the op leaves the running statistics as they were. Modules that run instead
            of it do as they do in torch: nothing is raised, and the running statistics are no longer finite.

    Source: main paper, section 3.2 and Table 1; supplement, A.1.
    """
    _check(z_seq, bn, neuron, shortcut, connect_f, connect_before, T)
    norm = None if isinstance(bn, nn.Identity) else bn
    if not (fused and fusing.can_fuse(z_seq, norm, neuron)):
        return _by_modules(z_seq, norm, neuron, shortcut, connect_f, connect_before, T, two)
    return by_op(z_seq, norm, neuron, shortcut, connect_f, connect_before, T=T, two=two, pack_spikes=pack_spikes)


def by_op(
    z_seq: Tensor,
    norm: nn.Module | None,
    neuron: nn.Module | None,
    shortcut: Tensor | None = None,
    connect_f: str | None = None,
    connect_before: bool = False,
    *,
    T: int | None = None,
    two: bool = False,
    pack_spikes: bool = False,
) -> native.Output:
    """:func:`bn_neuron` in one op, where the caller has made sure that it can be (:func:`fusing.can_fuse`)."""
    state = state_dtype(z_seq.dtype)
    n = fusing.normalisation(norm, z_seq, T or 0, state)
    settings, leak = fusing.neuron_settings(neuron, state)
    connect = native.ADD_BEFORE if connect_before else native.CONNECTIONS[connect_f]
    binary = neuron is not None and connect in (native.NONE, native.ADD_BEFORE)
    step_numel = z_seq.numel() if T else z_seq.numel() // len(z_seq)
    store_v = _stores_v(neuron)
    output = native.bn_neuron(
        z_seq,
        shortcut,
        n.statistics,
        n.weight,
        n.bias,
        leak,
        native.Options(n.eps, connect, T or 0, *settings),
        training=n.training,
        count=n.count,
        group=n.group,
        store_v=store_v,
        pack=pack_spikes and binary and step_numel % 8 == 0,
        two=two,
    )
    fusing.update_running(norm, n)
    if store_v:
        neuron.set_final_v(output.v, graph_lost=output.out.requires_grad)
    return output


def bn_neuron_pool(z_seq: Tensor, bn: nn.Module | None, neuron: nn.Module, T: int, *, fused: bool = True) -> Tensor:
    """The stem of the ImageNet networks: batch norm of a still image, the neuron over T time-steps, and
    ``max_pool2d(kernel_size=3, stride=2, padding=1)`` of its spikes, in one op that writes the pooled spikes alone.

    A spike is 0 or 1, so a window's maximum is 1 if any of its neurons fires. Backward recomputes that from z, and
    sends a window's gradient where ``max_pool2d`` does: to the first position that holds the maximum.

    The modules run one after the other where :func:`bn_neuron` would let them, for T > 16, and where the neuron's final
    potential is to be stored (``store_v``).

    Args:
        z_seq: a still image ``[N, C, H, W]``, contiguous or channels_last.
        bn, neuron, fused: as in :func:`bn_neuron`.
        T: how often the image is shown.

    Returns:
        ``[T, N, C, H / 2, W / 2]``, halves rounded up.

    Raises: as :func:`bn_neuron`. Source: supplement, Table S1 (conv1).
    """
    for name, value in (("neuron", neuron), ("T", T)):
        if value is None:
            raise TypeError(f"{name} must not be None")
    _check(z_seq, bn, neuron, None, None, False, T)
    if z_seq.dim() != 4:
        raise ValueError(f"z_seq must be [N, C, H, W], got shape {list(z_seq.shape)}")
    norm = None if isinstance(bn, nn.Identity) else bn
    if not fused or T > native_pool.MAX_T or not fusing.can_fuse(z_seq, norm, neuron) or _stores_v(neuron):
        s_seq = bn_neuron(z_seq, bn, neuron, T=T, fused=fused).out
        return max_pool2d(s_seq.flatten(0, 1), 3, 2, 1).unflatten(0, s_seq.shape[:2])
    state = state_dtype(z_seq.dtype)
    n = fusing.normalisation(norm, z_seq, T, state)
    settings, leak = fusing.neuron_settings(neuron, state)
    out = native_pool.bn_neuron_pool(
        z_seq,
        n.statistics,
        n.weight,
        n.bias,
        leak,
        (n.eps, T, *settings),
        training=n.training,
        count=n.count,
        group=n.group,
    )
    fusing.update_running(norm, n)
    return out


def _stores_v(neuron: nn.Module | None) -> bool:
    return isinstance(neuron, BaseNode) and neuron.store_v and not torch.compiler.is_exporting()


def _by_modules(z_seq, norm, neuron, shortcut, connect_f, connect_before, T, two) -> native.Output:
    if norm is not None and not isinstance(norm, nn.SyncBatchNorm) and fusing.group_of(norm) is not None:
        raise RuntimeError(
            "this batch norm shares its statistics with other processes, which only the fused op can do: it must not "
            "have hooks, and its neuron must be one the compiled kernels know"
        )
    normalise = norm.normalise if isinstance(norm, fusing.Norm) else norm
    if norm is None:
        y = z_seq if T is None else z_seq.unsqueeze(0).expand(T, *z_seq.shape)
    elif T is None:
        y = normalise(z_seq.flatten(0, 1)).unflatten(0, z_seq.shape[:2])
    else:
        y = normalise(z_seq)
        y = y.unsqueeze(0).expand(T, *y.shape)
    if connect_before:
        y = y + shortcut
    a = y if neuron is None else over_steps(neuron, y)
    out = a if connect_f is None or connect_before else CONNECT[connect_f](a, shortcut)
    return native.Output(out, out if two else None, getattr(neuron, "v", None), None)


def over_steps(neuron: nn.Module, y_seq: Tensor) -> Tensor:
    """A neuron in single-step mode sees one time-step after the other, and keeps its state."""
    if getattr(neuron, "step_mode", "m") == "s":
        return torch.stack([neuron(y) for y in y_seq])
    return neuron(y_seq)


def check_connection(connect_f, connect_before) -> None:
    """What is connected, and where."""
    if connect_f is not None and connect_f not in CONNECT:
        raise ValueError(f"connect_f must be None or one of {', '.join(map(repr, CONNECT))}, got {connect_f!r}")
    if connect_before and connect_f != "ADD":
        raise ValueError(f"connect_before adds the shortcut: connect_f must be 'ADD', got {connect_f!r}")


def _check(z_seq, bn, neuron, shortcut, connect_f, connect_before, T) -> None:
    check_connection(connect_f, connect_before)
    checks.check_floating("z_seq", z_seq)
    for name, module in (("bn", bn), ("neuron", neuron)):
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a module or None, got {module!r}")
    if T is not None and (isinstance(T, bool) or not isinstance(T, int)):
        raise TypeError(f"T must be an int or None, got {type(T).__name__}")
    if T is not None and T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    dims = "[T, N, C, ...]" if T is None else "a still image [N, C, ...]"
    if z_seq.dim() < (3 if T is None else 2):
        raise ValueError(f"z_seq must be {dims}, got shape {list(z_seq.shape)}")
    if T is None and z_seq.shape[0] == 0:
        raise ValueError(f"z_seq must have at least one time-step, got shape {list(z_seq.shape)}")
    features = getattr(bn, "num_features", None)
    channels = z_seq.shape[2 if T is None else 1]
    if features and channels != features:  # 0: a lazy norm, which learns it from z_seq
        raise ValueError(f"z_seq must be {dims} with {features} channels, got shape {list(z_seq.shape)}")
    if connect_f is None:
        if shortcut is not None:
            raise ValueError("shortcut is given, but connect_f is None: there is nothing to connect it with")
        return
    if not isinstance(shortcut, Tensor):
        raise TypeError(f"shortcut must be a tensor (connect_f is {connect_f!r}), got {type(shortcut).__name__}")
    expected = list(z_seq.shape) if T is None else [T, *z_seq.shape]
    if list(shortcut.shape) != expected:
        raise ValueError(f"shortcut must have the shape of out, {expected}, got {list(shortcut.shape)}")
    if shortcut.dtype != z_seq.dtype:
        raise TypeError(f"shortcut must have the dtype of z_seq, {z_seq.dtype}, got {shortcut.dtype}")
    if shortcut.device != z_seq.device:
        raise ValueError(f"shortcut must be on the device of z_seq, {z_seq.device}, got {shortcut.device}")
