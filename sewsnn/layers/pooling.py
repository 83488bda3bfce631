"""Max pooling before or after the neuron of :func:`sewsnn.layers.bn_neuron`."""

import torch
from torch import Tensor, nn

from sewsnn.layers.norm import Normalisation, OneCall
from sewsnn.layers.plan import may_skip_calls, must_be_called
from sewsnn.ops import max_pool as native
from sewsnn.ops.max_pool import Window


def check_pool(pool, before: bool) -> None:
    """Raises an error unless ``pool`` and ``before`` are arguments of :func:`sewsnn.layers.bn_neuron`.

    Raises:
        TypeError: ``pool`` is no ``nn.MaxPool2d``, or returns indices as well.
        ValueError: there is nothing to pool before the neuron.
    """
    if pool is None:
        if before:
            raise ValueError("pool_before is given, but pool is None: there is nothing to pool")
        return
    if not isinstance(pool, nn.MaxPool2d):
        raise TypeError(f"pool must be an nn.MaxPool2d or None, got {type(pool).__name__}")
    if pool.return_indices:
        raise TypeError("pool must return a tensor: its return_indices must be False")


def check_images(z_seq: Tensor, T: int | None) -> None:
    """Raises ValueError unless z_seq has the dimensions of a sequence of images; with T, of a still image."""
    if z_seq.dim() != (5 if T is None else 4):
        wanted = "[T, N, C, H, W]" if T is None else "a still image [N, C, H, W]"
        raise ValueError(f"with pool, z_seq must be {wanted}, got shape {list(z_seq.shape)}")


def window_of(pool: nn.Module) -> Window | None:
    """The windows of a max pooling; None: the ops have no such windows, or the module must be called."""
    if type(pool) is not nn.MaxPool2d or must_be_called(pool) or not may_skip_calls(None, None):
        return None
    return Window.of_module(pool)


def window_for(pool: nn.Module, x: Tensor) -> Window | None:
    """:func:`window_of`, if the ops can pool x, ``[..., C, H, W]``, here and now; else None."""
    window = window_of(pool)
    return window if window is not None and native.runs(x, window) else None


def same_order(x: Tensor) -> bool:
    """Returns whether module and op give a result of x, ``[..., C, H, W]``, the same memory order."""
    return x.is_contiguous() or x.movedim(-3, -1).is_contiguous()


def pool_images(pool: nn.Module, x: Tensor) -> Tensor:
    """Max pooling of x, ``[..., C, H, W]``, by the op where it can run, else by the module.

    It has torch's values and gradients, and keeps one byte for each window.
    """
    window = window_for(pool, x)
    return over_images(pool, x) if window is None else native.max_pool(x, window)


def over_images(pool: nn.Module, x: Tensor) -> Tensor:
    """Calls the module with all images of x, ``[..., C, H, W]``."""
    return pool(x) if x.dim() <= 4 else pool(x.flatten(0, -4)).unflatten(0, x.shape[:-3])


def pooled_shape(pool: nn.Module, shape: torch.Size) -> torch.Size | None:
    """The shape of the pooled result of ``[..., C, H, W]``; None: only a call of the module knows."""
    if type(pool) is not nn.MaxPool2d:
        return None
    settings = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    return (*shape[:-2], *nn.functional.max_pool2d(torch.empty(1, *shape[-2:], device="meta"), *settings).shape[1:])


def check_windows(pool: nn.Module, z: Tensor) -> None:
    """Raises ValueError if z has no window, before anything has changed."""
    if type(pool) is not nn.MaxPool2d or torch.compiler.is_compiling():
        return
    try:
        pooled_shape(pool, z.shape)
    except RuntimeError as error:
        raise ValueError(f"z_seq has no window of {pool}, got shape {list(z.shape)}: {error}") from None


def pooled_input(z: Tensor, n: Normalisation, window: Window) -> tuple[Tensor, Normalisation]:
    """Pools the input of a norm so that the norm of the result is the pooled norm of z, and what the ops then take."""
    if n.statistics is None:
        return native.max_pool(z, window), n
    given = {"training": n.training, "count": n.count, "group": n.group}
    z, statistics = native.pooled_input(z, n.statistics, n.weight, window, **given)
    return z, Normalisation(statistics, n.weight, n.bias, n.eps)


def pooled_batch(z: Tensor, eps: float, one_call: OneCall, window: Window) -> tuple[Tensor, Normalisation]:
    """:func:`pooled_input` of a norm in training whose arguments are those of one call; it takes the statistics and
    updates the running ones in the same pass."""
    weight, bias, running = one_call
    z, statistics = native.pooled_batch(z, weight, running, window)
    return z, Normalisation(statistics, weight, bias, eps)
