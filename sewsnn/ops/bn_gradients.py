"""Backward of batch norm + neuron + connection: what it keeps, and the gradients."""

import torch
import torch.distributed as dist
from torch import Tensor

from sewsnn.ops.load import NATIVE_ERROR
from sewsnn.ops.options import ADD, NONE, SUM, Options, from_numbers

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_batched = torch._C._functorch.is_legacy_batchedtensor

#: ops by name, as the functions that ``torch.ops`` calls
OPS = {}
if NATIVE_ERROR is None:
    for _name in (
        *("bn_take_statistics", "bn_neuron_train", "bn_neuron_backward", "bn_neuron_reduce", "bn_neuron_apply"),
        *("bn_neuron_pool_reduce", "bn_neuron_pool_apply", "max_pool", "max_pool_backward"),
        "max_pool_statistics",
        *("bn_neuron_pooled", "bn_neuron_pooled_backward"),
    ):
        OPS[_name] = getattr(torch.ops.sewsnn, _name).default._op


def remember(ctx, z, shortcut, channels, checkpoints, numbers, training=True, count=1.0, group=None):
    """Saves what backward needs. ``channels``: statistics, weight, bias and leak. ``numbers``: the options."""
    if numbers[1] == ADD:  # no gradient depends on the values of the shortcut
        shortcut = None
    ctx.numbers, ctx.training, ctx.count, ctx.group = numbers, training, count, group
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(z, shortcut, *channels, checkpoints)


def gradients(ctx, needs, grad_out, grad_skip):
    """Gradients of z, shortcut, statistics, weight, bias and leak; ``needs``: which of them are needed.

    grad_skip: the gradient of ``skip``. The statistics have a gradient where they are those of another tensor than z,
    of which z was pooled (:mod:`sewsnn.ops.max_pool`)."""
    if ctx.numbers[1] == SUM:
        return _with_sum(ctx, needs, grad_out, grad_skip)
    if grad_out is None:
        grad_out, grad_skip = grad_skip, None
    if grad_out is None:
        return (None,) * 6
    need_z, need_shortcut, need_statistics, need_weight, need_bias, need_leak = needs
    saved, numbers, training = ctx.saved_tensors, ctx.numbers, ctx.training
    own_shortcut = need_shortcut and numbers[1] != ADD
    if numbers[1] == ADD:  # backward computes ADD like no connection
        numbers = (numbers[0], NONE, *numbers[2:])
    need_sums = need_weight or need_bias or need_leak or need_statistics or grad_skip is not None
    need_sums = need_sums or (need_z and training)
    grad_weight = grad_bias = grad_leak = grad_z = grad_shortcut = None
    # With is_grads_batched, torch runs an op gradient by gradient, but only if no result is optional.
    one_call = ctx.group is None and not _is_batched(grad_out)
    if one_call and need_sums and (need_z or own_shortcut):
        grad_z, grad_shortcut, grad_sum, grad_weight, grad_bias, grad_leak = below_autograd(
            "bn_neuron_backward", grad_out, grad_skip, *saved, (*numbers, training, own_shortcut, need_leak)
        )
        grad_out = grad_out if grad_skip is None else grad_sum
    else:
        (arguments, tail), sums = from_numbers(numbers), None
        if need_sums:
            sums, grad_sum, grad_leak = below_autograd(
                "bn_neuron_reduce", grad_out, grad_skip, *saved, *arguments, need_leak, *tail
            )
            grad_out = grad_out if grad_skip is None else grad_sum
            grad_bias, grad_weight = sums.unbind()
        if need_z or own_shortcut:
            all_sums, count = sums if training else None, 1.0
            if training and need_z:
                z = saved[0]
                count = z.numel() / z.shape[1 if numbers[2] else 2]
                all_sums = sums_of_all(ctx, sums, count)
            grad_z, grad_shortcut = below_autograd(
                "bn_neuron_apply", grad_out, *saved, all_sums, count, *arguments, own_shortcut, *tail
            )
    return (
        grad_z if need_z else None,
        (grad_shortcut if own_shortcut else grad_out) if need_shortcut else None,
        _of_statistics(saved[2], saved[3], numbers[0], grad_weight, grad_bias) if need_statistics else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        grad_leak if need_leak else None,
    )


def _with_sum(ctx, needs, grad_out, grad_total):
    """:func:`gradients` for the connection SUM. ``ctx`` has saved the sum in place of the shortcut.

    bn_neuron_reduce adds the gradient of the sum, grad_total, to dL/dy: this is the gradient of both terms of the sum.
    """
    need_z, need_shortcut, need_statistics, need_weight, need_bias, need_leak = needs
    z, total, *channels, leak, checkpoints = ctx.saved_tensors
    numbers, training = ctx.numbers, ctx.training
    if grad_out is None:  # nobody has used the spikes: no neuron
        if grad_total is None:
            return (None,) * 6
        grad_out, grad_total, numbers, need_leak = grad_total, None, _without_neuron(numbers), False
        total = leak = checkpoints = None
    neuron = numbers[1] == SUM
    grad_z = grad_leak = None
    tensors = (z, total, *channels, leak, checkpoints)
    if ctx.group is None and not _is_batched(grad_out):
        grad_z, _, grad_sum, grad_weight, grad_bias, grad_leak = below_autograd(
            "bn_neuron_backward", grad_out, grad_total, *tensors, (*numbers, training, False, need_leak)
        )
        grad_sum = grad_sum if neuron else grad_out
    else:
        arguments, tail = from_numbers(numbers)
        sums, grad_sum, grad_leak = below_autograd(
            "bn_neuron_reduce", grad_out, grad_total, *tensors, *arguments, need_leak, *tail
        )
        grad_sum = grad_sum if neuron else grad_out
        grad_bias, grad_weight = sums.unbind()
        if need_z:
            count = z.numel() / z.shape[1 if numbers[2] else 2]
            arguments, tail = from_numbers(_without_neuron(numbers))
            all_sums = sums_of_all(ctx, sums, count) if training else None
            grad_z, _ = below_autograd(
                "bn_neuron_apply", grad_sum, z, None, *channels, None, None, all_sums, count, *arguments, False, *tail
            )
    return (
        grad_z if need_z else None,
        grad_sum if need_shortcut else None,
        _of_statistics(*channels[:2], numbers[0], grad_weight, grad_bias) if need_statistics else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        grad_leak if need_leak else None,
    )


def _of_statistics(statistics, weight, eps, grad_weight, grad_bias):
    """The gradients ``[2, C]`` of mean and variance, from the sums of dL/dy xhat (grad_weight) and dL/dy (grad_bias).

    dL/dmean = -scale sum(dL/dy),  dL/dvar = -scale sum(dL/dy xhat) / (2 sqrt(var + eps))
    """
    inverse = (statistics[1] + eps).rsqrt()
    scale = -inverse if weight is None else -inverse * weight
    return torch.stack([scale * grad_bias, scale * (0.5 * inverse) * grad_weight])


def _without_neuron(numbers):
    """The options without neuron and connection."""
    return Options(numbers[0], NONE, int(numbers[2]), None).numbers


def below_autograd(name, *arguments):
    """Calls an op of backward below autograd."""
    if torch.is_grad_enabled():  # create_graph=True: the op's autograd formula raises an error
        return getattr(torch.ops.sewsnn, name).default(*arguments)
    with _BelowAutograd():
        return OPS[name](*arguments)


def sums_of_all(ctx, sums: Tensor, count: float) -> Tensor:
    """The sums over all processes that share statistics, scaled to the number of values of this process."""
    if ctx.group is None:
        return sums
    sums = sums.clone()
    dist.all_reduce(sums, group=ctx.group)
    return sums * (count / ctx.count).to(sums.dtype)
