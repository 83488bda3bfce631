"""Convolutions of spikes that keep 1 bit per spike for backward instead of a number."""

from torch import Tensor, nn

from sewsnn.ops.bn import Output


def over_time(layers, x_seq: Tensor) -> Tensor:
    """Applies a stateless ``layers`` to ``[T, N, ...]`` as one batch of T * N."""
    return layers(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


def conv_over_time(conv: nn.Module, x: Output) -> Tensor:
    """``conv`` of ``x.out [T, N, C, H, W]``. Where x has ``bits``, they are what is kept for the weight's gradient."""
    if x.bits is None or type(conv) is not nn.Conv2d or conv._forward_hooks or conv.padding_mode != "zeros":
        return over_time(conv, x.out)
    raise NotImplementedError
