"""Batch norm + neuron + connection in one op (:func:`bn_neuron`), with max pooling before or after the neuron."""

import torch
from torch import Tensor, nn

from sewsnn.layers import quick
from sewsnn.layers.connection import NOT_CONNECTED, Connection, connection_of
from sewsnn.layers.norm import Norm, Normalisation, check_norm, group_of, normalisation, update_running
from sewsnn.layers.plan import Plan, plan
from sewsnn.layers.pooling import (
    check_images,
    check_pool,
    check_windows,
    over_images,
    pool_images,
    pooled_batch,
    pooled_input,
    pooled_shape,
    window_for,
)
from sewsnn.neuron import BaseNode
from sewsnn.ops import bn as native
from sewsnn.ops import checks
from sewsnn.ops.bn_pooled import bn_neuron_pooled
from sewsnn.ops.max_pool import Window

_MODULE_OR_NONE = (nn.Module, type(None))


def bn_neuron(
    z_seq: Tensor,
    bn: nn.Module | None,
    neuron: nn.Module | None,
    shortcut: Tensor | None = None,
    *,
    connect_f: str | None = None,
    connect_before: bool = False,
    T: int | None = None,
    merged: bool = False,
    return_skip: bool = False,
    return_sum: bool = False,
    pack_spikes: bool = False,
    pool: nn.MaxPool2d | None = None,
    pool_before: bool = False,
    fused: bool = True,
) -> native.Output:
    """Batch norm, the neuron over all T, and the connection with the shortcut, in one op where that is possible.

        y = (z - mean) weight / sqrt(var + eps) + bias      mean and var over T, N and space
        A = SN(y)
        out = A (None), A + S (ADD), A S (AND), S (1 - A) (IAND)
        out = SN(y + S)                                     ADD with ``connect_before``: the order of Spiking ResNet
        u = y + S, out = SN(u)                              the same with ``return_sum``: the membrane shortcut

    With ``pool``, out is pooled; with ``pool_before``, y is, before anything else happens to it.

    Memory: backward recomputes the neuron. Autograd keeps z and the statistics, S where its values are needed, and
    every 16th membrane potential if T > 16; with ``pool`` one byte for each window.

    Pooling before the neuron: z is pooled, by its maximum where the weight of a channel is positive and by its minimum
    where it is negative, because batch norm is monotone. The statistics are those of all of z. Neuron and backward work
    on the pooled tensor only. Where two different values of z in a window have the same y after rounding, the gradient
    goes to the larger z, and with separate modules to the first of them.

    Precision: statistics, potentials and sums are in float32 (float64 for float64 input) for every dtype of z_seq.
    Nothing is rounded between z_seq and out. Sums are taken in a fixed order, so the result has the same bits in every
    run.

    Fallback: the modules run one after the other where the op cannot replace them: modules with hooks, a norm or neuron
    of another class, a kept state, single-step mode, ``store_v_seq``, a surrogate of your own, ``torch.func``.

    Args:
        z_seq: output of a convolution, ``[T, N, C, ...]``, float32, float16, bfloat16 or float64, in any dense order
            (channels_last is the fastest). With ``T``: a still image ``[N, C, ...]``.
        bn: ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm`` or :class:`BNNeuron`. None or ``nn.Identity``: y = z.
        neuron: a node of :mod:`sewsnn.neuron`. None: A = y.
        shortcut: S, in the shape of out and the dtype of z_seq. Required with ``connect_f``. Default None.
        connect_f: None (default), ``"ADD"``, ``"AND"`` or ``"IAND"`` (main paper, Table 1).
        connect_before: add the shortcut before the neuron; needs ``connect_f="ADD"``. Default False.
        T: number of time-steps for which a still image z_seq is shown; it is normalised once. With ``merged``: number
            of time-steps in the first dimension. Default None: z_seq has a time axis.
        merged: z_seq and shortcut are ``[T * N, C, ...]`` with all samples of the first time-step first, and so are out
            and skip. Nothing is copied. It needs ``T``. Default False.
        return_skip: also return ``skip``, a second handle to out for the next block's shortcut; autograd then adds the
            two gradients inside this op's backward, which saves one pass over memory. Default False.
        return_sum: also return u, as ``skip``, for the next block's shortcut. u is rounded to the dtype of z_seq, and
            the neuron runs on the rounded u. Backward adds the two gradients of u inside the op. It needs
            ``connect_f="ADD"`` and ``connect_before=True``. Default False.
        pack_spikes: also return ``bits``, the packed spikes: spike i of a time-step (in the memory order of out) is bit
            i % 8 of byte i / 8. Default False. ``bits`` is None where the values are not spikes of 0 or 1 (a connection
            after the neuron, an ILIFNode, or no neuron), where N C H W is not a multiple of 8, and where the modules
            run.
        pool: ``nn.MaxPool2d`` over the space of ``[T, N, C, H, W]``: 3x3 with stride 2 and padding 1, 2x2 with stride
            2, or other square windows up to 15x15; others run as the module. ``bits`` is then None. Default None.
        pool_before: pool y, before the shortcut is added and before the neuron; shortcut and v then have the pooled
            shape. Default False: pool out.
        fused: False runs the modules one after the other. Default True.

    Returns:
        ``(out, skip, v, bits)``; an entry that was not requested is None. ``out`` is ``[T, N, C, ...]`` (with
        ``merged`` ``[T * N, C, ...]``) in the dtype of z_seq. ``v`` is the membrane potential ``[N, C, ...]`` after the
        last time-step. The node's own ``v`` is set as well.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: the neuron asks for a backend that cannot run here.
        RuntimeError: z_seq has values that are not finite, in training on the CPU. (On a GPU this check would have to
            wait for the result.) On both devices the op then leaves the running statistics unchanged. If the modules
            run instead, they behave as in torch: they raise nothing, and the running statistics become non-finite.

    Example:
        >>> bn, node = nn.BatchNorm2d(8), sewsnn.neuron.IFNode()
        >>> out, skip, v, bits = bn_neuron(torch.randn(4, 2, 8, 16, 16), bn, node)

    Source: main paper, section 3.2 and Table 1; supplement, A.1.
    """
    connection = connection_of(connect_f, connect_before, return_sum)
    if return_sum and return_skip:
        raise ValueError("return_skip and return_sum both return skip: choose one of them")
    return norm_neuron_connection(
        z_seq,
        bn,
        neuron,
        shortcut,
        connection,
        T=T,
        merged=merged,
        return_skip=return_skip,
        pack_spikes=pack_spikes,
        pool=pool,
        pool_before=pool_before,
        fused=fused,
    )


def norm_neuron_connection(
    z_seq: Tensor,
    bn: nn.Module | None,
    neuron: nn.Module | None,
    shortcut: Tensor | None,
    connection: Connection,
    *,
    T: int | None = None,
    merged: bool = False,
    return_skip: bool = False,
    pack_spikes: bool = False,
    pool: nn.MaxPool2d | None = None,
    pool_before: bool = False,
    fused: bool = True,
) -> native.Output:
    """:func:`bn_neuron` with the connection as an object, which is checked."""
    if merged:
        z_seq = checks.split("z_seq", z_seq, T)
        shortcut = checks.split("shortcut", shortcut, T) if isinstance(shortcut, Tensor) else shortcut
        options = {"return_skip": return_skip, "pack_spikes": pack_spikes, "fused": fused}
        options |= {"pool": pool, "pool_before": pool_before}
        output = norm_neuron_connection(z_seq, bn, neuron, shortcut, connection, **options)
        skip = None if output.skip is None else output.skip.flatten(0, 1)
        return output._replace(out=output.out.flatten(0, 1), skip=skip)
    if pool is not None or pool_before:
        check_pool(pool, pool_before)
        run = _pooled_before if pool_before else _pooled_after
        return run(z_seq, bn, neuron, shortcut, connection, T, return_skip, pool, fused)
    if connection.returns_sum and neuron is None:  # the sum is the output
        connection, return_skip = connection_of("ADD"), True
    if T is None and fused and not pack_spikes and not torch.compiler.is_compiling():
        refused = output = None
        try:
            output = quick.train(z_seq, bn, neuron, shortcut, connection, return_skip)
        except native.Refused as raised:
            refused = raised
        if refused is not None:  # the checks find a clearer error
            check_arguments(z_seq, bn, neuron, shortcut, connection, T)
            check_norm(bn, z_seq, 0)
            raise refused.args[0]
        if output is not None:
            return output
    check_arguments(z_seq, bn, neuron, shortcut, connection, T)
    norm = None if isinstance(bn, nn.Identity) else bn
    planned = None
    if fused:
        planned = plan(z_seq, norm, neuron, connection, T=T, return_skip=return_skip, pack_spikes=pack_spikes)
    if planned is None:
        return _by_modules(z_seq, norm, neuron, shortcut, connection, T, return_skip)
    return by_op(z_seq, shortcut, planned)


def _pooled_after(z_seq, bn, neuron, shortcut, connection, T, return_skip, pool, fused) -> native.Output:
    """:func:`norm_neuron_connection` with a pooled output: in one op, or in two."""
    check_arguments(z_seq, bn, neuron, shortcut, connection, T)
    check_images(z_seq, T)
    norm, planned = None if isinstance(bn, nn.Identity) else bn, None
    window = window_for(pool, z_seq) if fused and T is None and neuron is not None else None
    if window is not None and not connection.returns_sum and (norm is None or group_of(norm) is None):
        planned = plan(z_seq, norm, neuron, connection)
    if planned is None:
        check_windows(pool, z_seq)
        output = norm_neuron_connection(z_seq, bn, neuron, shortcut, connection, T=T, fused=fused)
        out = pool_images(pool, output.out) if fused else over_images(pool, output.out)
    else:
        output = by_pooled_op(z_seq, shortcut, planned, window)
        out = output.out
    return output._replace(out=out, skip=out if return_skip else output.skip, bits=None)


def _pooled_before(z_seq, bn, neuron, shortcut, connection, T, return_skip, pool, fused) -> native.Output:
    """:func:`norm_neuron_connection` of a pooled y: in one op, or norm, pooling and the rest one after the other."""
    check_arguments(z_seq, bn, neuron, shortcut, connection, T, pool)
    check_images(z_seq, T)
    if connection.returns_sum and neuron is None:  # the sum is the output
        connection, return_skip = connection_of("ADD"), True
    norm = None if isinstance(bn, nn.Identity) else bn
    window, planned = window_for(pool, z_seq) if fused else None, None
    if window is not None:
        planned = plan(z_seq, norm, neuron, connection, T=T, return_skip=return_skip)
    if planned is not None:
        return by_op(z_seq, shortcut, planned, window)
    check_windows(pool, z_seq)
    if norm is not None:
        y = norm_neuron_connection(z_seq, norm, None, None, NOT_CONNECTED, T=T, fused=fused).out
    else:
        y = z_seq if T is None else z_seq.unsqueeze(0).expand(T, *z_seq.shape)
    y = pool_images(pool, y) if fused else over_images(pool, y)
    return norm_neuron_connection(y, None, neuron, shortcut, connection, return_skip=return_skip, fused=fused)


def by_pooled_op(z_seq: Tensor, shortcut: Tensor | None, planned: Plan, window: Window) -> native.Output:
    """:func:`bn_neuron` with a pooled output in one op, as planned."""
    if planned.one_call is not None:
        weight, bias, running = planned.one_call
        n = Normalisation(native.take_statistics(z_seq, running, 0), weight, bias, planned.norm.eps, True)
        native.note_change(running)
    else:
        n = normalisation(planned.norm, z_seq, 0)
    output = bn_neuron_pooled(
        z_seq,
        shortcut,
        n.statistics,
        n.weight,
        n.bias,
        planned.learnt,
        native.Options(n.eps, planned.connect, 0, planned.spec),
        window,
        training=n.training,
        store_v=planned.store_v,
    )
    if planned.one_call is None:
        update_running(planned.norm, n)
    return _with_state(output, planned)


def _with_state(output: native.Output, planned: Plan) -> native.Output:
    """Gives the neuron its state after the last time-step, if it stores one, and returns the output with ``v``."""
    if planned.store_v:
        planned.neuron.set_final_v(output.v, graph_lost=output.out.requires_grad)
        if planned.neuron.state_names != ("v",):
            output = quick.with_potential(output)
    return output


def by_op(z_seq: Tensor, shortcut: Tensor | None, planned: Plan, window: Window | None = None) -> native.Output:
    """:func:`bn_neuron` in one op, as planned. With a window, y is pooled."""
    norm = planned.norm
    if planned.one_call is not None and window is None:
        weight, bias, running = planned.one_call
        numbers = native.Options(norm.eps, planned.connect, planned.T, planned.spec).numbers
        more = (planned.store_v, planned.pack, planned.return_skip)
        try:
            output = native.bn_neuron_train(z_seq, shortcut, weight, bias, planned.learnt, running, numbers, *more)
        except native.Refused as refused:
            raise refused.args[0] from None
    else:
        updated = planned.one_call is not None and not planned.T  # the op has updated the running statistics
        if updated:
            z_seq, n = pooled_batch(z_seq, norm.eps, planned.one_call, window)
        else:
            of_batch = n = normalisation(norm, z_seq, planned.T)
            if window is not None:
                z_seq, n = pooled_input(z_seq, n, window)
        output = native.bn_neuron(
            z_seq,
            shortcut,
            n.statistics,
            n.weight,
            n.bias,
            planned.learnt,
            native.Options(n.eps, planned.connect, planned.T, planned.spec),
            training=n.training,
            count=n.count,
            group=n.group,
            store_v=planned.store_v,
            pack=planned.pack and window is None,
            return_skip=planned.return_skip,
        )
        if not updated:
            update_running(norm, of_batch)
    return _with_state(output, planned)


def _by_modules(z_seq, norm, neuron, shortcut, connection, T, return_skip) -> native.Output:
    if norm is not None and not isinstance(norm, nn.SyncBatchNorm) and group_of(norm) is not None:
        raise RuntimeError(
            "this batch norm shares its statistics with other processes, which only the fused op can do, but the op "
            "cannot run here: remove hooks from the batch norm and its neuron, use fused=True, and use a neuron and a "
            "surrogate that the compiled kernels have"
        )
    normalise = norm.normalise if isinstance(norm, Norm) else norm
    if norm is None:
        y = z_seq if T is None else z_seq.unsqueeze(0).expand(T, *z_seq.shape)
    elif T is None:
        y = normalise(z_seq.flatten(0, 1)).unflatten(0, z_seq.shape[:2])
    else:
        y = normalise(z_seq)
        y = y.unsqueeze(0).expand(T, *y.shape)
    if connection.before:
        y = y + shortcut
    out = connection.after_neuron(y if neuron is None else over_steps(neuron, y), shortcut)
    skip = y if connection.returns_sum else out if return_skip else None
    return native.Output(out, skip, getattr(neuron, "v", None), None)


def over_steps(neuron: nn.Module, y_seq: Tensor) -> Tensor:
    """Calls a neuron on all time-steps: one by one in single-step mode, else at once."""
    if getattr(neuron, "step_mode", "m") == "s":
        return torch.stack([neuron(y) for y in y_seq])
    return neuron(y_seq)


def check_arguments(z_seq, bn, neuron, shortcut, connection, T, pool=None) -> None:
    """Checks the arguments of :func:`bn_neuron`. ``pool``: the module that pools y.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """
    checks.check_floating("z_seq", z_seq)
    if not isinstance(bn, _MODULE_OR_NONE):
        raise TypeError(f"bn must be a module or None, got {bn!r}")
    if not isinstance(neuron, _MODULE_OR_NONE):
        raise TypeError(f"neuron must be a module or None, got {neuron!r}")
    shape = z_seq.shape
    if T is None:
        dims, least, axis = "[T, N, C, ...]", 3, 2
    else:
        if isinstance(T, bool) or not isinstance(T, int):
            raise TypeError(f"T must be an int or None, got {type(T).__name__}")
        if T < 1:
            raise ValueError(f"T must be at least 1, got {T}")
        dims, least, axis = "a still image [N, C, ...]", 2, 1
    if len(shape) < least:
        raise ValueError(f"z_seq must be {dims}, got shape {list(shape)}")
    if T is None and shape[0] == 0:
        raise ValueError(f"z_seq must have at least one time-step, got shape {list(shape)}")
    features = getattr(bn, "num_features", None)
    if features and shape[axis] != features:  # 0: a lazy norm, which takes the number from z_seq
        raise ValueError(f"z_seq must be {dims} with {features} channels, got shape {list(shape)}")
    if isinstance(neuron, BaseNode):
        neuron.check_channels("z_seq", shape, axis)
        if connection.f in ("AND", "IAND") and not neuron.binary_spikes:
            raise ValueError(
                f"connect_f={connection.f!r} needs spikes of 0 or 1, but {type(neuron).__name__} sends several in a "
                "time-step: use 'ADD'"
            )
    if connection.f is None:
        if shortcut is not None:
            raise ValueError("shortcut is given, but connect_f is None: there is nothing to connect it with")
        return
    if not isinstance(shortcut, Tensor):
        raise TypeError(f"shortcut must be a tensor (connect_f is {connection.f!r}), got {type(shortcut).__name__}")
    if pool is not None:
        shape = pooled_shape(pool, shape)
    if shape is None:  # only after a call of the module it is known
        return
    expected = torch.Size(shape if T is None else (T, *shape))
    if shortcut.shape != expected:
        raise ValueError(f"shortcut must have the shape of out, {list(expected)}, got {list(shortcut.shape)}")
    checks.check_floating("shortcut", shortcut)
    if shortcut.dtype != z_seq.dtype:
        raise TypeError(f"shortcut must have the dtype of z_seq, {z_seq.dtype}, got {shortcut.dtype}")
    if shortcut.device != z_seq.device:
        raise ValueError(f"shortcut must be on the device of z_seq, {z_seq.device}, got {shortcut.device}")
