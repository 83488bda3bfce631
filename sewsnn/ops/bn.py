"""The native ops of batch norm + neuron + connection: fake kernels and autograd around ``torch.ops.sewsnn``.

Forward has two stages, ``bn_statistics`` and ``bn_neuron_forward``, so that the statistics can come from elsewhere
(other processes, or the epilogue of a convolution). Backward has two stages as well: ``bn_neuron_reduce`` sums dL/dy
and dL/dy xhat over each channel, and ``bn_neuron_apply`` uses the sums. Both recompute the neuron from z. Autograd
keeps z, the statistics, the shortcut where its values are needed, and the neuron's checkpoints for T > 16.

There are two autograd formulas, as in :mod:`sewsnn.ops.neuron` and for the same reason.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sewsnn.ops.load import NATIVE_ERROR
from sewsnn.ops.neuron import V_FINAL, V_NONE, checkpoint_count, dense_strides, no_double_backward, no_forward_mode
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.shapes import check_kinds, check_operands, check_size

NO_NEURON = -1  # the `kind` of batch norm without a neuron
NONE, ADD, AND, IAND, ADD_BEFORE = 0, 1, 2, 3, 4  # Connect in csrc/core/bn_params.h
CONNECTIONS = {None: NONE, "ADD": ADD, "AND": AND, "IAND": IAND}


class Options(NamedTuple):
    """The arguments of the ops besides tensors, in the order of the ops."""

    eps: float
    connect: int
    T: int  # 0: z has a time axis; else z is a still image that is shown T times
    kind: int
    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    surrogate: int
    alpha: float
    detach_reset: bool


class Output(NamedTuple):
    """The result of :func:`sewsnn.layers.bn_neuron`; a field that was not requested is None.

    Attributes:
        out: spikes or sums of spikes ``[T, N, C, ...]`` in the dtype of z_seq.
        skip: a second handle to the values of ``out``, for the shortcut of the next block. Backward adds its gradient
            to that of ``out`` inside the op.
        v: membrane potential ``[N, C, ...]`` after the last time-step, in float32 (float64 for float64 input).
        bits: packed spikes ``[T, M / 8]`` as uint8, M = N C H W, in the memory order of ``out``.
    """

    out: Tensor
    skip: Tensor | None
    v: Tensor | None
    bits: Tensor | None


def moments(z: Tensor, T: int, group=None) -> tuple[Tensor, Tensor | float]:
    """Mean and biased variance ``[2, C]`` in the state's dtype, and the number of values that they average.

    With ``group`` they average the values of all its processes, and the number is a tensor.

    Raises:
        RuntimeError: on the CPU, if they are not finite. (On a GPU this check would need a synchronisation.)
    """
    count = z.numel() / z.shape[1 if T else 2]
    statistics = torch.ops.sewsnn.bn_statistics(z.detach(), T, group is None)
    if group is None:
        return statistics, count
    mean, var = statistics.double()
    sums = torch.cat([mean * count, (var + mean * mean) * count, mean.new_full((1,), count)])
    dist.all_reduce(sums, group=group)
    total = sums[-1]
    mean, square = (sums[:-1] / total).view(2, -1)
    joined = torch.stack([mean, (square - mean * mean).clamp(min=0)])
    if not z.is_cuda and not joined.isfinite().all():
        raise RuntimeError("z_seq has values that are not finite: its batch statistics are not finite")
    return joined.to(statistics.dtype), total


def update_running(
    statistics: Tensor, count: Tensor | float, momentum: float | Tensor, mean: Tensor, var: Tensor
) -> None:
    """Updates the running statistics in place: ``running += momentum (new - running)``, with the unbiased variance.

    It changes nothing if a statistic is not finite. ``momentum`` and ``count`` may be tensors on the device.
    """
    if mean.dtype != statistics.dtype or not (mean.is_contiguous() and var.is_contiguous()):
        wide = mean.to(statistics.dtype).contiguous(), var.to(statistics.dtype).contiguous()
        update_running(statistics, count, momentum, *wide)
        mean.copy_(wide[0])
        var.copy_(wide[1])
    elif isinstance(count, Tensor) or isinstance(momentum, Tensor):
        unbiased = statistics[1] * (count / (count - 1))
        finite = statistics.isfinite().all()
        for running, new in ((mean, statistics[0]), (var, unbiased)):
            running.copy_(torch.where(finite, running + momentum * (new - running), running))
    else:
        torch.ops.sewsnn.bn_update(statistics, momentum, count, mean, var)


def bn_neuron(
    z: Tensor,
    shortcut: Tensor | None,
    statistics: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    leak: Tensor | None,
    options: Options,
    *,
    training: bool,
    count: Tensor | float = 1.0,
    group=None,
    store_v: bool = False,
    pack: bool = False,
    two: bool = False,
) -> Output:
    """Calls the compiled kernels. :mod:`sewsnn.layers` has checked the arguments and filled in the defaults.

    Args:
        training: the statistics are those of z (over ``count`` values), which changes the gradient of z.
        two: return ``skip`` as well.
    """
    tensors = (z, shortcut, statistics, weight, bias, leak)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    v_mode = V_FINAL if store_v and options.kind != NO_NEURON else V_NONE
    skip = None
    if torch.compiler.is_compiling() and group is None:
        out, v, _, bits = torch.ops.sewsnn.bn_neuron_forward(*tensors, *options, v_mode, needs_grad, pack, training)
        skip = out if two else None
    elif needs_grad:
        out, skip, v, _, bits = _BnNeuron.apply(*tensors, options, v_mode, pack, training, count, group, two)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            out, v, _, bits = torch.ops.sewsnn.bn_neuron_forward.default(*tensors, *options, v_mode, False, pack, False)
        skip = out if two else None
    return Output(out, skip, v if v_mode else None, bits if pack else None)


def unpack_spikes(bits: Tensor, sizes, strides, dtype: torch.dtype) -> Tensor:
    """The spikes of ``Output.bits`` as a dense tensor of these sizes, strides and dtype."""
    return torch.ops.sewsnn.unpack_spikes(bits, list(sizes), list(strides), dtype)


class _Saved(NamedTuple):
    """The tensors that backward needs, in the order in which autograd saves them."""

    z: Tensor
    shortcut: Tensor | None
    statistics: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    leak: Tensor | None
    checkpoints: Tensor


def _remember(ctx, inputs, checkpoints, options, training, count, group):
    z, shortcut, *channels = inputs
    if options.connect == ADD:  # no gradient depends on the values of the shortcut
        shortcut = None
    ctx.options, ctx.training, ctx.count, ctx.group = options, training, count, group
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(z, shortcut, *channels, checkpoints)


def _gradients(ctx, grad_out, grad_skip):
    """Gradients of z, shortcut, statistics (always None), weight, bias and leak."""
    if grad_out is None:
        grad_out, grad_skip = grad_skip, None
    if grad_out is None:
        return (None,) * 6
    need_z, need_shortcut, _, need_weight, need_bias, need_leak, *_ = ctx.needs_input_grad
    saved, options = _Saved(*ctx.saved_tensors), ctx.options
    connect = NONE if options.connect == ADD else options.connect  # backward computes ADD like no connection
    arguments = (*saved, options.eps, connect, *options[2:])
    sums = grad_leak = None
    if need_weight or need_bias or need_leak or grad_skip is not None or (need_z and ctx.training):
        sums, grad_sum, grad_leak = below_autograd("bn_neuron_reduce", grad_out, grad_skip, *arguments, need_leak)
        grad_out = grad_out if grad_skip is None else grad_sum
    own_shortcut = need_shortcut and options.connect != ADD
    grad_z = grad_shortcut = None
    if need_z or own_shortcut:
        all_sums, count = sums if ctx.training else None, 1.0
        if ctx.training and need_z:
            count = saved.z.numel() / saved.z.shape[1 if options.T else 2]
            all_sums = sums_of_all(ctx, sums, count)
        grad_z, grad_shortcut = below_autograd(
            "bn_neuron_apply", grad_out, *arguments[:7], all_sums, count, *arguments[7:], own_shortcut
        )
    return (
        grad_z if need_z else None,
        (grad_shortcut if own_shortcut else grad_out) if need_shortcut else None,
        None,
        sums[1] if need_weight else None,
        sums[0] if need_bias else None,
        grad_leak if need_leak else None,
    )


def below_autograd(name, *arguments):
    """Calls an op of backward below autograd."""
    op = getattr(torch.ops.sewsnn, name).default
    if torch.is_grad_enabled():  # create_graph=True: the op's autograd formula raises an error
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def sums_of_all(ctx, sums: Tensor, count: float) -> Tensor:
    """The sums over all processes that share statistics, scaled to the number of values of this process."""
    if ctx.group is None:
        return sums
    sums = sums.clone()
    dist.all_reduce(sums, group=ctx.group)
    return sums * (count / ctx.count).to(sums.dtype)


class _BnNeuron(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, z, shortcut, statistics, weight, bias, leak, options, v_mode, pack, training, count, group, two):
        inputs = (z, shortcut, statistics, weight, bias, leak)
        with torch._C._AutoDispatchBelowAutograd():
            out, v, checkpoints, bits = torch.ops.sewsnn.bn_neuron_forward.default(
                *inputs, *options, v_mode, True, pack, training
            )
        _remember(ctx, inputs, checkpoints, options, training, count, group)
        ctx.mark_non_differentiable(v, checkpoints, bits)
        # A view, not a detached alias: autograd then notices an in-place change of either.
        return out, out.view_as(out) if two else None, v, checkpoints, bits

    @staticmethod
    def backward(ctx, grad_out, grad_skip, *_):
        return *_gradients(ctx, grad_out, grad_skip), *(None,) * 7


def _setup_context(ctx, inputs, output):
    tensors, options, training = inputs[:6], Options(*inputs[6:17]), inputs[-1]
    _, v, checkpoints, bits = output
    _remember(ctx, tensors, checkpoints, options, training, 1.0, None)
    ctx.mark_non_differentiable(v, checkpoints, bits)


def _backward(ctx, grad_out, *_):
    return *_gradients(ctx, grad_out, None), *(None,) * 15


# ---- shapes and strides without data


def _sequence(z: Tensor, T: int) -> tuple[list[int], list[int]]:
    """Sizes and strides of a tensor like z with its time axis."""
    seq = z.unsqueeze(0).expand(T, *z.shape) if T else z
    return list(seq.shape), dense_strides(seq)


def _statistics_fake(z, T, check):
    return z.new_empty(2, z.shape[1 if T else 2], dtype=state_dtype(z.dtype))


def _update_fake(statistics, momentum, count, running_mean, running_var):
    check_operands(statistics, running_mean, running_var)


def _check_options(*values) -> None:
    options = Options(*values)
    if options.connect not in range(5):
        raise RuntimeError(f"unknown connection {options.connect}")
    if options.kind != NO_NEURON:
        check_kinds(options.kind, options.surrogate)


def _forward_fake(z, shortcut, statistics, weight, bias, leak, eps, connect, T, kind, *rest):
    *_, v_mode, needs_grad, pack, _ = rest
    _check_options(eps, connect, T, kind, *rest[:7])
    check_operands(z, shortcut, statistics, weight, bias, leak, T=T)
    sizes, strides = _sequence(z, T)
    state, M = state_dtype(z.dtype), math.prod(sizes[1:])
    spiking = kind != NO_NEURON
    v = z.new_empty_strided(sizes[1:], strides[1:], dtype=state) if v_mode and spiking else z.new_empty(0, dtype=state)
    kept = checkpoint_count(sizes[0]) * M if needs_grad and spiking else 0
    return (
        z.new_empty_strided(sizes, strides),
        v,
        z.new_empty(kept, dtype=state),
        z.new_empty(sizes[0] * M // 8 if pack else 0, dtype=torch.uint8),
    )


def _reduce_fake(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints, eps, connect, T, *rest):
    _check_options(eps, connect, T, *rest[:8])
    check_operands(z, grad_out, grad_skip, shortcut, statistics, weight, bias, leak, checkpoints, T=T)
    sizes, strides = _sequence(z, T)
    state = state_dtype(z.dtype)
    return (
        z.new_empty(2, sizes[2], dtype=state),
        z.new_empty(0) if grad_skip is None else z.new_empty_strided(sizes, strides),
        leak.new_empty(()) if rest[-1] else z.new_empty(0, dtype=state),
    )


def _apply_fake(
    grad_out, z, shortcut, statistics, weight, bias, leak, checkpoints, sums, count, eps, connect, T, *rest
):
    _check_options(eps, connect, T, *rest[:8])
    check_operands(z, grad_out, shortcut, statistics, weight, bias, leak, checkpoints, sums, T=T)
    sizes, strides = _sequence(z, T)
    return (
        z.new_empty_strided(sizes[1:], strides[1:]) if T else z.new_empty_strided(sizes, strides),
        z.new_empty_strided(sizes, strides) if rest[-1] else z.new_empty(0),
    )


def _unpack_fake(bits, sizes, strides, dtype):
    check_size(math.prod(sizes), dtype)
    return bits.new_empty_strided(sizes, strides, dtype=dtype)


if NATIVE_ERROR is None:
    torch.library.register_fake("sewsnn::unpack_spikes", _unpack_fake)
    torch.library.register_fake("sewsnn::bn_statistics", _statistics_fake)
    torch.library.register_fake("sewsnn::bn_update", _update_fake)
    torch.library.register_fake("sewsnn::bn_neuron_forward", _forward_fake)
    torch.library.register_fake("sewsnn::bn_neuron_reduce", _reduce_fake)
    torch.library.register_fake("sewsnn::bn_neuron_apply", _apply_fake)
    torch.library.register_autograd("sewsnn::bn_neuron_forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("sewsnn::bn_neuron_reduce", no_double_backward)
    torch.library.register_autograd("sewsnn::bn_neuron_apply", no_double_backward)
