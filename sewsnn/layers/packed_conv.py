"""Convolutions of spikes that keep 1 bit per spike for backward instead of 16 or 32."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sewsnn.layers.plan import must_be_called
from sewsnn.ops import bn as native
from sewsnn.ops.bn import Output


def over_time(layers: Callable[[Tensor], Tensor], x_seq: Tensor) -> Tensor:
    """Applies a stateless layer to all time-steps at once, as one batch of T * N samples.

    Args:
        layers: a module or function from ``[T * N, ...]`` to ``[T * N, ...]``.
        x_seq: ``[T, N, ...]``.

    Returns:
        The output of ``layers``, ``[T, N, ...]``.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3, padding=1)
        >>> z_seq = over_time(conv, torch.randn(4, 2, 3, 16, 16))  # [4, 2, 8, 16, 16]
    """
    return layers(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


def conv_over_time(conv: nn.Module, x: Output) -> Tensor:
    """A convolution of all time-steps, which keeps packed spikes for backward where they are given.

    If x has ``bits`` and ``conv`` is a plain ``nn.Conv2d``, the convolution keeps the bits for the gradient of its
    weight instead of the spikes: 1 bit per spike instead of 16 or 32. Backward unpacks them while it needs them. In all
    other cases this is ``over_time(conv, x.out)``.

    Args:
        conv: the convolution.
        x: the result of :func:`bn_neuron`, with ``pack_spikes=True`` for packed spikes. ``x.out`` has the shape
            ``[T, N, C, H, W]``.

    Returns:
        ``[T, N, C_out, H_out, W_out]``.

    Example:
        >>> x = bn_neuron(torch.randn(4, 2, 8, 16, 16), nn.BatchNorm2d(8), sewsnn.neuron.IFNode(), pack_spikes=True)
        >>> z_seq = conv_over_time(nn.Conv2d(8, 8, 3, padding=1), x)
    """
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    if x.bits is None or not plain or must_be_called(conv):
        return over_time(conv, x.out)
    weight, bias, s_seq = conv.weight, conv.bias, x.out
    device = s_seq.device.type
    if torch.is_autocast_enabled(device) and s_seq.dtype != torch.float64:  # autocast does not cast float64
        dtype = torch.get_autocast_dtype(device)
        weight, s_seq = weight.to(dtype), s_seq.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _PackedConv.apply(s_seq, x.bits, weight, bias, settings)


class _PackedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s_seq, bits, weight, bias, settings):
        stride, padding, dilation, groups = settings
        ctx.settings = settings
        ctx.sizes, ctx.strides, ctx.dtype = s_seq.shape, s_seq.stride(), s_seq.dtype
        ctx.bias_sizes = None if bias is None else [len(bias)]
        ctx.save_for_backward(bits, weight)
        z = torch.conv2d(s_seq.flatten(0, 1), weight, bias, stride, padding, dilation, groups)
        return z.unflatten(0, s_seq.shape[:2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_z):
        bits, weight = ctx.saved_tensors
        need_s, _, need_weight, need_bias, _ = ctx.needs_input_grad
        if need_weight:
            s_seq = native.unpack_spikes(bits, ctx.sizes, ctx.strides, ctx.dtype)
        else:  # convolution_backward reads only its shape
            s_seq = torch.empty_strided(ctx.sizes, ctx.strides, dtype=ctx.dtype, device=bits.device)
        stride, padding, dilation, groups = ctx.settings
        grad_s, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad_z.flatten(0, 1),
            s_seq.flatten(0, 1),
            weight,
            ctx.bias_sizes,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [need_s, need_weight, need_bias],
        )
        return grad_s.unflatten(0, ctx.sizes[:2]) if need_s else None, None, grad_weight, grad_bias, None
