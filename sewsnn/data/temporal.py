"""Augmentation of sequences: :func:`random_temporal_delete`."""

import torch
from torch import Tensor


def random_temporal_delete(
    x_seq: Tensor, T_remain: int, time_dim: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Random temporal delete: keeps ``T_remain`` of the T time-steps, drawn without replacement, in their order. All
    samples of the batch keep the same time-steps.

    Args:
        x_seq: ``[T, N, ...]``, any dtype and device; T may be another dimension.
        T_remain: number of time-steps to keep, 1 to T.
        time_dim: the dimension of T (default 0).
        generator: source of the random numbers, on the CPU; None (default): torch's global CPU generator.

    Returns:
        ``[T_remain, N, ...]`` on the device of ``x_seq``.

    Raises:
        TypeError: ``x_seq`` is not a tensor, or ``T_remain`` is not an int.
        ValueError: ``T_remain`` or ``time_dim`` is out of range.

    Source: supplement A.2 of the SEW ResNet paper (T = 16, T_train = 12 for DVS Gesture, in training only).
    """
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"x_seq must be a tensor, got {type(x_seq).__name__}")
    if isinstance(T_remain, bool) or not isinstance(T_remain, int):
        raise TypeError(f"T_remain must be an int, got {type(T_remain).__name__}")
    if not -x_seq.dim() <= time_dim < x_seq.dim():
        raise ValueError(f"time_dim must be one of x_seq's {x_seq.dim()} dimensions, got {time_dim}")
    T = x_seq.shape[time_dim]
    if not 1 <= T_remain <= T:
        raise ValueError(f"T_remain must be 1 to T = {T}, got {T_remain}")
    left = torch.randperm(T, generator=generator)[:T_remain].sort().values
    return x_seq.index_select(time_dim, left.to(x_seq.device, non_blocking=True))  # no wait for the GPU
