"""The native ops of batch norm + neuron + connection whose output is pooled, and their autograd.

On a GPU, what is pooled is neither written nor read: forward writes the pooled output and one byte per window, and both
passes of backward take each gradient from the window that it belongs to. On the CPU the ops run the kernels of
:mod:`sewsnn.ops.bn` and :mod:`sewsnn.ops.max_pool` one after the other.
"""

import torch
from torch import Tensor

from sewsnn.ops.bn import Output
from sewsnn.ops.bn_gradients import OPS, below_autograd
from sewsnn.ops.bn_shapes import any_forward_fake, backward_fake
from sewsnn.ops.load import NATIVE_ERROR
from sewsnn.ops.max_pool import Window, like_images
from sewsnn.ops.neuron import V_FINAL, V_NONE, called_directly, no_double_backward, no_forward_mode
from sewsnn.ops.options import ADD, COUNT, NONE, Options, numbers_of
from sewsnn.ops.shapes import check_operands


def bn_neuron_pooled(
    z: Tensor,
    shortcut: Tensor | None,
    statistics: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    leak: Tensor | None,
    options: Options,
    window: Window,
    *,
    training: bool,
    store_v: bool = False,
) -> Output:
    """:func:`sewsnn.ops.bn.bn_neuron`, then max pooling of ``out``. z is a sequence ``[T, N, C, H, W]``, the statistics
    are those of this process, and the connection returns no sum."""
    tensors = (z, shortcut, statistics, weight, bias, leak)
    v_mode = V_FINAL if store_v and options.spec is not None else V_NONE
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        out, v = _apply(*tensors, options, v_mode, window, training)
    else:
        out, v, *_ = _forward(tensors, options, v_mode, False, window, training)
    return Output(out, None, v if v_mode else None, None)


def _forward(tensors, options, v_mode, needs_grad, window, training):
    with torch._C._AutoDispatchBelowAutograd():
        return OPS["bn_neuron_pooled"](
            *tensors, *options.arguments, v_mode, needs_grad, *window, training, *options.tail
        )


def _remember(ctx, tensors, options: tuple[float, ...], window, training, checkpoints, positions):
    """Saves what backward needs. ``options``: their numbers."""
    z, shortcut, *channels = tensors
    ctx.adds = options[1] == ADD
    if ctx.adds:  # no gradient depends on the values of the shortcut, and backward computes ADD like no connection
        shortcut, options = None, (options[0], NONE, *options[2:])
    ctx.numbers, ctx.training = (*options, *window), training
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(positions, z, shortcut, *channels, checkpoints)


def _gradients(ctx, grad_out):
    """The gradients of all arguments: z, shortcut, statistics (None), weight, bias, leak, and None for the rest."""
    needs = ctx.needs_input_grad
    if grad_out is None:
        return (None,) * len(needs)
    z, shortcut, _, weight, bias, leak = needs[:6]
    flags = (ctx.training, shortcut and not ctx.adds, shortcut and ctx.adds, leak)
    grad_z, grad_shortcut, grad_weight, grad_bias, grad_leak = below_autograd(
        "bn_neuron_pooled_backward", grad_out, *ctx.saved_tensors, (*ctx.numbers, *flags)
    )
    return (
        grad_z if z else None,
        grad_shortcut if shortcut else None,
        None,
        grad_weight if weight else None,
        grad_bias if bias else None,
        grad_leak if leak else None,
        *(None,) * (len(needs) - 6),
    )


@called_directly
class _BnNeuronPooled(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, z, shortcut, statistics, weight, bias, leak, options, v_mode, window, training):
        tensors = (z, shortcut, statistics, weight, bias, leak)
        out, v, checkpoints, positions = _forward(tensors, options, v_mode, True, window, training)
        _remember(ctx, tensors, options.numbers, window, training, checkpoints, positions)
        ctx.mark_non_differentiable(v)
        return out, v

    @staticmethod
    def backward(ctx, grad_out, _):
        return _gradients(ctx, grad_out)


def _setup_context(ctx, inputs, output):
    (*arguments, _, _, kernel, stride, padding, training), extra = inputs[6:-1], inputs[-1]
    _, v, checkpoints, positions = output
    window = Window(kernel, stride, padding)
    _remember(ctx, inputs[:6], numbers_of(tuple(arguments), extra), window, training, checkpoints, positions)
    ctx.mark_non_differentiable(v, checkpoints, positions)


def _op_backward(ctx, grad_out, *_):
    return _gradients(ctx, grad_out)


_apply = super(torch.autograd.Function, _BnNeuronPooled).apply


# ---- shapes and strides without data


def _pooled_fake(z, shortcut, statistics, weight, bias, leak, *rest):
    (v_mode, needs_grad, *window, training), extra = rest[COUNT : COUNT + 6], rest[COUNT + 6 :]
    given = (*rest[:COUNT], v_mode, needs_grad, False, training, *extra)
    out, v, checkpoints, _ = any_forward_fake(z, shortcut, statistics, weight, bias, leak, *given)
    sizes = [*out.shape[:-2], *map(Window(*window).count, out.shape[-2:])]
    positions = like_images(out, sizes, torch.uint8) if needs_grad else z.new_empty(0, dtype=torch.uint8)
    return like_images(out, sizes, out.dtype), v, checkpoints, positions


def _backward_fake(grad_out, positions, z, shortcut, statistics, weight, bias, leak, checkpoints, numbers):
    *given, _, _, _, training, need_shortcut, need_dense, need_leak = numbers
    check_operands(z, positions)
    tensors = (z, shortcut, statistics, weight, bias, leak, checkpoints)
    flags = (training, need_shortcut, need_leak)
    grad_z, grad_shortcut, _, *channels = backward_fake(grad_out, None, *tensors, (*given, *flags))
    if need_dense:
        grad_shortcut = torch.empty_like(grad_z)
    elif grad_shortcut is None:
        grad_shortcut = z.new_empty(0)
    grad_weight, grad_bias, grad_leak = channels
    if grad_leak is None:
        grad_leak = grad_bias.new_empty(0)
    return grad_z, grad_shortcut, grad_weight, grad_bias, grad_leak


if NATIVE_ERROR is None:
    torch.library.register_fake("sewsnn::bn_neuron_pooled", _pooled_fake)
    torch.library.register_fake("sewsnn::bn_neuron_pooled_backward", _backward_fake)
    torch.library.register_autograd("sewsnn::bn_neuron_pooled", _op_backward, setup_context=_setup_context)
    torch.library.register_autograd("sewsnn::bn_neuron_pooled_backward", no_double_backward)
