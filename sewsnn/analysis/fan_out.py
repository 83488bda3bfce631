"""How many outputs of a convolution read each of its inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def readers(conv: nn.Module, sizes: Sequence[int]) -> list[Tensor]:
    """For each spatial axis of an input of ``sizes``: how many output positions read each index of that axis.

    The window of a convolution is a product of its axes. Therefore ``count_h[i] * count_w[j]`` output positions read
    input ``(i, j)``, in each output channel of its group. Along one axis, these are the outputs o with a kernel tap k
    for which ``o stride + k dilation`` is the padded index of i. Padding that repeats inputs (reflect, replicate,
    circular) raises their counts.

    Args:
        conv: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.
        sizes: the input's size along each spatial axis.

    Returns:
        One integer tensor per axis, as long as that axis.
    """
    return [_readers(conv, axis, size) for axis, size in enumerate(sizes)]


def _readers(conv: nn.Module, axis: int, size: int) -> Tensor:
    kernel, stride, dilation = conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis]
    padded = _padded_indices(conv, axis, size)
    outputs = (len(padded) - dilation * (kernel - 1) - 1) // stride + 1
    taps = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation  # [outputs, kernel]
    read = padded[taps].flatten()
    return torch.bincount(read[read >= 0], minlength=size)


def _padded_indices(conv: nn.Module, axis: int, size: int) -> Tensor:
    """The input's index at each position of the padded axis; -1 for a zero."""
    if conv.padding == "same":
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        left, right = total // 2, total - total // 2
    else:
        left = right = 0 if conv.padding == "valid" else conv.padding[axis]
    indices = torch.arange(size, dtype=torch.float64)[None, None]
    if conv.padding_mode == "zeros":
        padded = nn.functional.pad(indices, (left, right), value=-1)
    else:
        padded = nn.functional.pad(indices, (left, right), mode=conv.padding_mode)
    return padded[0, 0].long()
