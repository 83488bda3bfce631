"""The native ops of the stem: fake kernels and autograd around ``torch.ops.sewsnn``.

The stem is batch norm of one still image, the neuron over T time-steps, and MaxPool 3x3 with stride 2 and padding 1.
The op writes only pooled spikes. Backward recomputes everything from z, in two passes as in :mod:`sewsnn.ops.bn`. The
gradient of a pooling window goes to the first position that holds its maximum, as in
``torch.nn.functional.max_pool2d``.
"""

import torch
from torch import Tensor

from sewsnn.ops.bn_gradients import below_autograd, sums_of_all
from sewsnn.ops.load import NATIVE_ERROR
from sewsnn.ops.max_pool import like_images
from sewsnn.ops.neuron import CHUNK, called_directly, no_double_backward, no_forward_mode
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.registry import BY_NUMBER, KINDS
from sewsnn.ops.shapes import check_kinds, check_operands
from sewsnn.ops.spec import COUNT, NeuronSpec

MAX_T = CHUNK  # most time-steps that one pass can hold


def has(spec: NeuronSpec) -> bool:
    """Returns whether the ops of the stem have this neuron."""
    return KINDS[spec.kind].in_stem


def bn_neuron_pool(
    z: Tensor,
    statistics: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    leak: Tensor | None,
    options: tuple,
    *,
    training: bool,
    count: Tensor | float = 1.0,
    group=None,
) -> Tensor:
    """Pooled spikes ``[T, N, C, H / 2, W / 2]`` of z ``[N, C, H, W]``.

    :mod:`sewsnn.layers` has checked the arguments and filled in the defaults. ``options`` holds eps, T and the neuron's
    :attr:`sewsnn.ops.spec.NeuronSpec.arguments`.
    """
    tensors = (z, statistics, weight, bias, leak)
    if torch.compiler.is_compiling() and group is None:
        return torch.ops.sewsnn.bn_neuron_pool_forward(*tensors, *options, training)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _BnNeuronPool.apply(*tensors, options, training, count, group)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.sewsnn.bn_neuron_pool_forward.default(*tensors, *options, training)


def _remember(ctx, tensors, options, training, count, group):
    ctx.options, ctx.training, ctx.count, ctx.group = options, training, count, group
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad_out):
    """Gradients of z, statistics (always None), weight, bias and leak."""
    if grad_out is None:
        return (None,) * 5
    need_z, _, need_weight, need_bias, need_leak, *_ = ctx.needs_input_grad
    z, *channels = ctx.saved_tensors
    sums = grad_leak = grad_z = None
    if need_weight or need_bias or need_leak or (need_z and ctx.training):
        arguments = (grad_out, z, *channels, *ctx.options, need_leak)
        sums, grad_leak = below_autograd("bn_neuron_pool_reduce", *arguments)
    if need_z:
        all_sums, count = None, 1.0
        if ctx.training:
            count = z.numel() / z.shape[1]
            all_sums = sums_of_all(ctx, sums, count)
        grad_z = below_autograd("bn_neuron_pool_apply", grad_out, z, *channels, all_sums, count, *ctx.options)
    return (
        grad_z,
        None,
        sums[1] if need_weight else None,
        sums[0] if need_bias else None,
        grad_leak if need_leak else None,
    )


def _filled(ctx, gradients):
    """The gradients of the tensors among those of all arguments."""
    return *gradients, *(None,) * (len(ctx.needs_input_grad) - len(gradients))


@called_directly
class _BnNeuronPool(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, z, statistics, weight, bias, leak, options, training, count, group):
        tensors = (z, statistics, weight, bias, leak)
        _remember(ctx, tensors, options, training, count, group)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.sewsnn.bn_neuron_pool_forward.default(*tensors, *options, training)

    @staticmethod
    def backward(ctx, grad_out):
        return _filled(ctx, _gradients(ctx, grad_out))


def _setup_context(ctx, inputs, output):
    *tensors_and_options, training = inputs
    _remember(ctx, tensors_and_options[:5], tuple(tensors_and_options[5:]), training, 1.0, None)


def _backward(ctx, grad_out):
    return _filled(ctx, _gradients(ctx, grad_out))


# ---- shapes and strides without data


def _check_kind(arguments: tuple) -> None:
    info = BY_NUMBER.get(arguments[0])
    if info is not None and not info.in_stem:
        raise RuntimeError(f"bn_neuron_pool has no kernels for neuron kind {arguments[0]}")
    check_kinds(arguments)


def _forward_fake(z, statistics, weight, bias, leak, eps, T, *rest):
    _check_kind(rest[:COUNT])
    check_operands(z, statistics, weight, bias, leak, T=T)
    n, c, h, w = z.shape
    return like_images(z, [T, n, c, (h + 1) // 2, (w + 1) // 2], z.dtype)


def _reduce_fake(grad_out, z, statistics, weight, bias, leak, eps, T, *rest):
    _check_kind(rest[:COUNT])
    check_operands(z, grad_out, statistics, weight, bias, leak)
    state = state_dtype(z.dtype)
    return z.new_empty(2, z.shape[1], dtype=state), leak.new_empty(leak.shape) if rest[-1] else z.new_empty(
        0, dtype=state
    )


def _apply_fake(grad_out, z, statistics, weight, bias, leak, sums, count, eps, T, *neuron):
    _check_kind(neuron)
    check_operands(z, grad_out, statistics, weight, bias, leak, sums)
    return like_images(z, z.shape, z.dtype)


if NATIVE_ERROR is None:
    torch.library.register_fake("sewsnn::bn_neuron_pool_forward", _forward_fake)
    torch.library.register_fake("sewsnn::bn_neuron_pool_reduce", _reduce_fake)
    torch.library.register_fake("sewsnn::bn_neuron_pool_apply", _apply_fake)
    torch.library.register_autograd("sewsnn::bn_neuron_pool_forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("sewsnn::bn_neuron_pool_reduce", no_double_backward)
    torch.library.register_autograd("sewsnn::bn_neuron_pool_apply", no_double_backward)
