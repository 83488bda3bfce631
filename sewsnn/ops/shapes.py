"""Checks of tensors for the fake kernels, which compute shapes without data. The compiled ops check the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sewsnn.ops.registry import BY_NUMBER, SURROGATES, KindInfo

_MOST_BYTES = 2**63 - 1


def check_size(count: int, dtype: torch.dtype) -> None:
    """Checks that 64 bits can hold the number of bytes of ``count`` elements. It skips symbolic sizes, since a
    comparison would make them constants.

    Raises:
        RuntimeError: there are too many elements.
    """
    if isinstance(count, int) and count * dtype.itemsize > _MOST_BYTES:
        raise RuntimeError(f"a tensor would be too large: 64 bits do not hold the bytes of {count} numbers ({dtype})")


def check_kinds(arguments: tuple, extra: Sequence[float] = ()) -> KindInfo:
    """Checks that the kernels have this neuron and this surrogate, and returns what they know of the neuron.
    ``arguments``: those of a schema that describe the neuron; ``extra``: its further numbers.

    Raises:
        RuntimeError: they do not. The compiled kernels raise the same error.
    """
    kind, *_, surrogate, _, _ = arguments
    if kind not in BY_NUMBER:
        raise RuntimeError(f"unknown neuron kind {kind}")
    if surrogate not in range(len(SURROGATES)):
        raise RuntimeError(f"unknown surrogate kind {surrogate}")
    if len(extra) != BY_NUMBER[kind].extra:
        raise RuntimeError(f"neuron kind {kind} has {BY_NUMBER[kind].extra} extra numbers, got {len(extra)}")
    return BY_NUMBER[kind]


def check_operands(x: Tensor | None, *others: Tensor | None, T: int = 0) -> None:
    """Checks that all tensors are on the device of x, and that 64 bits can hold the bytes of x, T times if T is given.

    Raises:
        RuntimeError: x is missing, a tensor is on another device (real tensors and meta tensors in one call, for
            example), or a tensor is too large.
    """
    if x is None:
        raise RuntimeError("the op's own tensor is missing")
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"all tensors must be on the device of the first, {x.device}; one is on {other.device}")
    check_size(x.numel() * (T or 1), x.dtype)
