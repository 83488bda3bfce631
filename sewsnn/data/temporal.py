"""Augmentation of sequences."""

import torch
from torch import Tensor


def random_temporal_delete(
    x_seq: Tensor, T_remain: int, time_dim: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Random temporal delete: ``T_remain`` of the T time-steps, drawn without replacement, in their order; the same
    for the whole batch.

    Args:
        x_seq: ``[T, N, ...]``, or with T elsewhere.
        T_remain: time-steps that are left, 1 to T.
        time_dim: where T is.
        generator: None: torch's global one for the CPU.

    Returns:
        ``[T_remain, N, ...]``.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source: supplement, A.2 (T = 16, T_train = 12 for DVS Gesture, in training only).
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
    return x_seq.index_select(time_dim, left.to(x_seq.device, non_blocking=True))  # the host does not wait
