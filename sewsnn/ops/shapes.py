"""What the ops check of their tensors, for those who ask for shapes alone: the fake kernels."""

import torch
from torch import Tensor

_MOST_BYTES = 2**63 - 1


def check_size(count: int, dtype: torch.dtype) -> None:
    """So many numbers can be counted in bytes. (Symbolic sizes are not asked: that would fix them.)

    Raises:
        RuntimeError: they cannot.
    """
    if isinstance(count, int) and count * dtype.itemsize > _MOST_BYTES:
        raise RuntimeError(f"a tensor would be too large: 64 bits do not hold the bytes of {count} numbers ({dtype})")


def check_operands(x: Tensor | None, *others: Tensor | None, T: int = 0) -> None:
    """All tensors are where x is, and a result like x, or like T times x, can be counted.

    Raises:
        RuntimeError: an op was called with real tensors and one of the meta device, with too large ones, or without.
    """
    if x is None:
        raise RuntimeError("the op's own tensor is missing")
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"all tensors must be on the device of the first, {x.device}; one is on {other.device}")
    check_size(x.numel() * (T or 1), x.dtype)
