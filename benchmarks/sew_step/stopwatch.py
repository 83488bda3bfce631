"""Measures the time a CPU spends in the convolutions of a network, forward and backward, within the measured step."""

import time

import torch
from torch import nn


class Stopwatch:
    """Runs every ``nn.Conv2d`` of ``net`` with the same two operations as before, and sums up their time."""

    def __init__(self, net: nn.Module):
        self.seconds = 0.0
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module._conv_forward = self._timed(module)

    def _timed(self, conv: nn.Conv2d):
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return lambda x, weight, bias: _Timed.apply(x, weight, bias, settings, self)


class _Timed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, settings, watch):
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else [len(bias)]
        ctx.settings, ctx.watch = settings, watch
        start = time.perf_counter()
        out = torch.conv2d(x, weight, bias, *settings)
        watch.seconds += time.perf_counter() - start
        return out

    @staticmethod
    def backward(ctx, grad):
        stride, padding, dilation, groups = ctx.settings
        wanted = list(ctx.needs_input_grad[:3])
        start = time.perf_counter()
        grads = torch.ops.aten.convolution_backward(
            grad, *ctx.saved_tensors, ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        ctx.watch.seconds += time.perf_counter() - start
        return *grads, None, None
