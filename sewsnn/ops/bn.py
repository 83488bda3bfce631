"""The native ops of batch norm + neuron + connection: autograd around ``torch.ops.sewsnn``.

A step of training makes two calls: ``bn_neuron_train`` (statistics, forward, running statistics) and
``bn_neuron_backward``. Both have two stages, which are also ops of their own. In forward, ``bn_statistics`` and
``bn_neuron_forward``: the statistics can come from elsewhere (other processes, evaluation, the graph of a compiler). In
backward, ``bn_neuron_reduce`` sums dL/dy and dL/dy xhat over each channel, and ``bn_neuron_apply`` uses the sums. Both
recompute the neuron from z. Autograd keeps z, the statistics, the shortcut where its values are needed, and the
neuron's checkpoints for T > 16.

The gradients are in :mod:`sewsnn.ops.bn_gradients`. There are two autograd formulas, as in :mod:`sewsnn.ops.neuron` and
for the same reason.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sewsnn.ops import bn_shapes
from sewsnn.ops.bn_gradients import OPS, gradients, remember
from sewsnn.ops.load import NATIVE_ERROR
from sewsnn.ops.neuron import V_FINAL, V_NONE, called_directly, no_double_backward, no_forward_mode
from sewsnn.ops.options import (  # noqa: F401
    ADD,
    ADD_BEFORE,
    CONNECTIONS,
    COUNT,
    NO_NEURON,
    NONE,
    SUM,
    Options,
    from_numbers,
    numbers_of,
)

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_increment_version = torch._C._increment_version


#: the buffers that a batch norm updates in training: mean and variance ``[C]`` in the dtype of the state, the number of
#: calls (one int64, or None), and the momentum
Running = tuple[Tensor, Tensor, Tensor | None, float]


class Output(NamedTuple):
    """The result of :func:`sewsnn.layers.bn_neuron`; a field that was not requested is None.

    Attributes:
        out: spikes or sums of spikes ``[T, N, C, ...]`` in the dtype of z_seq.
        skip: the shortcut of the next block: a second handle to the values of ``out`` (``return_skip``), whose gradient
            backward adds to that of ``out`` inside the op; or the sum BN(z) + S (``return_sum``).
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
    statistics = torch.ops.sewsnn.bn_statistics.default(z.detach(), T, group is None)
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


def take_statistics(z: Tensor, running: Running | None, T: int) -> Tensor:
    """The statistics of z, ``[2, C]``, and an update of the running statistics, in one call; for statistics of this
    process, outside of torch.compile. Like torch's batch norm, it leaves the versions of the running statistics.

    Raises:
        RuntimeError: on the CPU, if they are not finite. The running statistics are then unchanged.
    """
    mean, var, tracked, momentum = running or (None, None, None, 0.0)
    with _BelowAutograd():
        return OPS["bn_take_statistics"](z, mean, var, tracked, (T, momentum))


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
        torch.ops.sewsnn.bn_update.default(statistics, momentum, count, mean, var)


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
    return_skip: bool = False,
) -> Output:
    """Calls the compiled kernels. :mod:`sewsnn.layers` has checked the arguments and filled in the defaults.

    Args:
        training: the statistics are those of z (over ``count`` values), which changes the gradient of z.
        return_skip: return ``skip`` as well. With the connection SUM, ``skip`` is always the sum.
    """
    if options.connect == SUM:
        return _with_sum(z, shortcut, statistics, weight, bias, leak, options, training, count, group, store_v, pack)
    tensors = (z, shortcut, statistics, weight, bias, leak)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    v_mode = V_FINAL if store_v and options.spec is not None else V_NONE
    arguments, tail, skip = options.arguments, options.tail, None
    if torch.compiler.is_compiling() and group is None:
        out, v, _, bits = torch.ops.sewsnn.bn_neuron_forward(
            *tensors, *arguments, v_mode, needs_grad, pack, training, *tail
        )
        skip = out if return_skip else None
    elif needs_grad:
        out, skip, v, _, bits = _apply_bn_neuron(*tensors, options, v_mode, pack, training, count, group, return_skip)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            out, v, _, bits = torch.ops.sewsnn.bn_neuron_forward.default(
                *tensors, *arguments, v_mode, False, pack, False, *tail
            )
        skip = out if return_skip else None
    return Output(out, skip, v if v_mode else None, bits if pack else None)


def _with_sum(z, shortcut, statistics, weight, bias, leak, options, training, count, group, store_v, pack) -> Output:
    """:func:`bn_neuron` with the connection SUM. (No op packs its spikes.)"""
    tensors = (z, shortcut, statistics, weight, bias, leak)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    v_mode = V_FINAL if store_v else V_NONE
    if torch.compiler.is_compiling() and group is None:
        out, total, v, _ = torch.ops.sewsnn.bn_neuron_sum(
            *tensors, *options.arguments, v_mode, needs_grad, training, *options.tail
        )
    elif needs_grad:
        out, total, v, _ = _apply_bn_neuron_sum(*tensors, options, v_mode, training, count, group)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            out, total, v, _ = torch.ops.sewsnn.bn_neuron_sum.default(
                *tensors, *options.arguments, v_mode, False, False, *options.tail
            )
    return Output(out, total, v if v_mode else None, None)


def bn_neuron_train(
    z: Tensor,
    shortcut: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    leak: Tensor | None,
    running: Running | None,
    numbers: tuple[float, ...],
    store_v: bool = False,
    pack: bool = False,
    return_skip: bool = False,
) -> Output:
    """:func:`bn_neuron` with the statistics of z, which it takes first, and with an update of the running statistics.

    One call of the compiled library; for statistics of this process, outside of torch.compile. ``numbers``: the options
    of :attr:`sewsnn.ops.options.Options.numbers`.

    Raises:
        Refused: the op raised an error.
    """
    mode = V_FINAL if store_v and numbers[3] != NO_NEURON else V_NONE
    if torch.is_grad_enabled() and (
        z.requires_grad
        or (weight is not None and weight.requires_grad)
        or (shortcut is not None and shortcut.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (leak is not None and leak.requires_grad)
    ):
        call = [running, numbers, mode, pack, return_skip]
        out = _apply_train(z, shortcut, weight, bias, leak, call)
        out, skip = out if type(out) is tuple else (out, None)
        v, bits = call  # results without a gradient, which autograd need not handle
    else:
        out, v, _, bits, _, total = _train(z, shortcut, weight, bias, leak, running, numbers, mode, False, pack)
        skip = total if numbers[1] == SUM else out if return_skip else None
    return Output(out, skip, v, bits)


class Refused(Exception):
    """``bn_neuron_train`` has raised an error, ``args[0]``, and changed nothing."""


def _train(z, shortcut, weight, bias, leak, running, numbers, v_mode, needs_grad, pack):
    """Calls ``bn_neuron_train`` below autograd. Returns (out, v, checkpoints, bits, statistics, sum)."""
    mean, var, tracked, momentum = running or (None, None, None, 0.0)
    numbers = (*numbers, momentum, v_mode, needs_grad, pack)
    try:
        with _BelowAutograd():
            results = OPS["bn_neuron_train"](z, shortcut, weight, bias, leak, mean, var, tracked, numbers)
    except Exception as error:
        raise Refused(error) from None
    if mean is not None:  # note_change(), without the cost of a call
        _increment_version((mean, var) if tracked is None else (mean, var, tracked))
    return results


def note_change(running: Running | None) -> None:
    """Lets autograd notice that an op has changed the running statistics, for a backward that has saved them."""
    if running is not None:
        mean, var, tracked, _ = running
        _increment_version((mean, var) if tracked is None else (mean, var, tracked))


def unpack_spikes(bits: Tensor, sizes, strides, dtype: torch.dtype) -> Tensor:
    """The spikes of ``Output.bits`` as a dense tensor of these sizes, strides and dtype."""
    return torch.ops.sewsnn.unpack_spikes(bits, list(sizes), list(strides), dtype)


@called_directly
class _Train(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, z, shortcut, weight, bias, leak, call):
        running, numbers, v_mode, pack, return_skip = call
        out, v, checkpoints, bits, statistics, total = _train(
            z, shortcut, weight, bias, leak, running, numbers, v_mode, True, pack
        )
        call[:] = v, bits
        if total is not None:
            remember(ctx, z, total, (statistics, weight, bias, leak), checkpoints, numbers)
            return out, total
        remember(ctx, z, shortcut, (statistics, weight, bias, leak), checkpoints, numbers)
        # A view, not a detached alias: autograd then notices an in-place change of either.
        return (out, out.view_as(out)) if return_skip else out

    @staticmethod
    def backward(ctx, grad_out, grad_skip=None):
        z, shortcut, weight, bias, leak = ctx.needs_input_grad[:5]
        z, shortcut, _, *channels = gradients(ctx, (z, shortcut, False, weight, bias, leak), grad_out, grad_skip)
        return z, shortcut, *channels, None


# Function.apply without the work that only torch.func needs; layers.plan has excluded torch.func.
_apply_train = super(torch.autograd.Function, _Train).apply


@called_directly
class _BnNeuron(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(
        ctx, z, shortcut, statistics, weight, bias, leak, options, v_mode, pack, training, count, group, return_skip
    ):
        channels = (statistics, weight, bias, leak)
        with torch._C._AutoDispatchBelowAutograd():
            out, v, checkpoints, bits = torch.ops.sewsnn.bn_neuron_forward.default(
                z, shortcut, *channels, *options.arguments, v_mode, True, pack, training, *options.tail
            )
        remember(ctx, z, shortcut, channels, checkpoints, options.numbers, training, count, group)
        ctx.mark_non_differentiable(v, checkpoints, bits)
        return out, out.view_as(out) if return_skip else None, v, checkpoints, bits

    @staticmethod
    def backward(ctx, grad_out, grad_skip, *_):
        return _all_gradients(ctx, grad_out, grad_skip)


@called_directly
class _BnNeuronSum(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, z, shortcut, statistics, weight, bias, leak, options, v_mode, training, count, group):
        channels = (statistics, weight, bias, leak)
        with torch._C._AutoDispatchBelowAutograd():
            out, total, v, checkpoints = torch.ops.sewsnn.bn_neuron_sum.default(
                z, shortcut, *channels, *options.arguments, v_mode, True, training, *options.tail
            )
        remember(ctx, z, total, channels, checkpoints, options.numbers, training, count, group)
        ctx.mark_non_differentiable(v, checkpoints)
        return out, total, v, checkpoints

    @staticmethod
    def backward(ctx, grad_out, grad_total, *_):
        return _all_gradients(ctx, grad_out, grad_total)


_apply_bn_neuron = super(torch.autograd.Function, _BnNeuron).apply
_apply_bn_neuron_sum = super(torch.autograd.Function, _BnNeuronSum).apply


def _all_gradients(ctx, grad_out, grad_skip):
    """The gradients of all arguments: z, shortcut, statistics, weight, bias, leak, and None for the rest."""
    needs = ctx.needs_input_grad
    return *gradients(ctx, needs[:6], grad_out, grad_skip), *(None,) * (len(needs) - 6)


def _setup_context(ctx, inputs, output):
    shortcut, (_, v, checkpoints, bits) = inputs[1], output
    _remember_op(ctx, inputs, shortcut, checkpoints)
    ctx.mark_non_differentiable(v, checkpoints, bits)


def _setup_sum_context(ctx, inputs, output):
    _, total, v, checkpoints = output
    _remember_op(ctx, inputs, total, checkpoints)
    ctx.mark_non_differentiable(v, checkpoints)


def _remember_op(ctx, inputs, kept, checkpoints):
    """Calls :func:`remember` with the arguments of ``bn_neuron_forward`` or ``bn_neuron_sum``."""
    z, _, statistics, weight, bias, leak, *rest = inputs
    arguments, (*_, training, extra) = rest[:COUNT], rest[COUNT:]
    remember(ctx, z, kept, (statistics, weight, bias, leak), checkpoints, numbers_of(arguments, extra), training)


def _backward(ctx, grad_out, *_):
    return _all_gradients(ctx, grad_out, None)


def _sum_backward(ctx, grad_out, grad_total, *_):
    return _all_gradients(ctx, grad_out, grad_total)


if NATIVE_ERROR is None:
    bn_shapes.register()
    torch.library.register_autograd("sewsnn::bn_neuron_forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("sewsnn::bn_neuron_sum", _sum_backward, setup_context=_setup_sum_context)
    for name in ("bn_neuron_reduce", "bn_neuron_apply", "bn_neuron_backward"):
        torch.library.register_autograd(f"sewsnn::{name}", no_double_backward)
