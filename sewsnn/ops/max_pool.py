"""The native ops of max pooling: fake kernels and autograd around ``torch.ops.sewsnn``.

They keep one byte per window for backward: the position of its maximum. torch's max pooling keeps its input and an
int64 per window.

:func:`pooled_input` pools the input of a batch norm: BN(max z) = max BN(z), where the weight is not negative, and
BN(min z) = max BN(z) where it is. The norm, the neuron and their backward then work on the pooled tensor.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from sewsnn.ops.bn import Running, note_change
from sewsnn.ops.bn_gradients import OPS, below_autograd
from sewsnn.ops.checks import DTYPES
from sewsnn.ops.load import NATIVE_DEVICES, NATIVE_ERROR, cuda_problem
from sewsnn.ops.neuron import called_directly, no_double_backward, no_forward_mode
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.shapes import check_operands

MOST_KERNEL = 15  # kMostPoolKernel in csrc/core/max_pool_params.h: a position is one byte


class Window(NamedTuple):
    """Square windows: their size and distance, and the rows and columns that are added around the image."""

    kernel: int
    stride: int
    padding: int

    def count(self, size: int) -> int:
        """The number of windows in one direction of an image with ``size`` rows or columns."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    @staticmethod
    def of(kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False) -> "Window | None":
        """The window that the arguments of ``torch.nn.MaxPool2d`` describe; None: the ops have no such window."""
        if ceil_mode or return_indices or _one_of(dilation) != 1:
            return None
        kernel, padding = _one_of(kernel_size), _one_of(padding)
        step = kernel if stride is None or stride == [] else _one_of(stride)
        if kernel is None or step is None or padding is None:
            return None
        fits = 1 <= kernel <= MOST_KERNEL and 1 <= step <= 1 << 30 and 0 <= 2 * padding <= kernel
        return Window(kernel, step, padding) if fits else None

    @staticmethod
    def of_module(pool: torch.nn.MaxPool2d) -> "Window | None":
        """The window of a module; None: the ops have no such window."""
        settings = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices
        return Window.of(*settings)


def _one_of(value) -> int | None:
    """The int that stands for both directions; None: they differ."""
    if isinstance(value, (tuple, list)) and len(value) in (1, 2) and value[0] == value[-1]:
        value = value[0]
    return value if type(value) is int else None


def runs(x: Tensor, window: Window) -> bool:
    """Returns whether the ops can pool x, ``[..., C, H, W]``, here and now."""
    if type(x) is not Tensor or not _runs_on(x.device):
        return False
    if x.layout != torch.strided or x.dtype not in DTYPES or x.dim() < 3 or x.numel() == 0:
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x._is_zerotensor():
        return False
    if forward_ad._current_level >= 0 or math.prod(x.shape[-3:]) >= 1 << 31:  # the kernels count an image with 32 bits
        return False
    return min(x.shape[-2:]) + 2 * window.padding >= window.kernel


_devices: dict[torch.device, bool] = {}  # whether the compiled kernels run there


def _runs_on(device: torch.device) -> bool:
    found = _devices.get(device)
    if found is None:
        known = NATIVE_ERROR is None and device.type in NATIVE_DEVICES
        found = _devices[device] = known and (device.type == "cpu" or cuda_problem(device.index) is None)
    return found


def max_pool(x: Tensor, window: Window) -> Tensor:
    """``torch.nn.functional.max_pool2d`` of x, ``[..., C, H, W]``: the same values and gradients, in the order of x.

    :func:`runs` has returned True for x.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _MaxPool.apply(x, window)
    with torch._C._AutoDispatchBelowAutograd():
        return OPS["max_pool"](x, None, *window, False)[0]


def pooled_input(
    z: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    window: Window,
    *,
    training: bool,
    count: Tensor | float = 1.0,
    group=None,
) -> tuple[Tensor, Tensor]:
    """Pools z so that the batch norm of the result is the pooled batch norm of z.

    Args:
        z: input of the norm, ``[..., C, H, W]``; :func:`runs` has returned True for it.
        statistics: mean and variance ``[2, C]``, in the dtype of the state.
        weight: weight of the norm ``[C]``; None: 1.
        window: the windows.
        training: the statistics are those of z over ``count`` values, in all processes of ``group``.
        count: number of values that the statistics average.
        group: the process group that shares the statistics; None: this process only.

    Returns:
        The pooled z, and the statistics. In training they have a gradient, which leads to z.
    """
    if torch.is_grad_enabled() and z.requires_grad:
        return _PooledInput.apply(z, statistics, weight, window, training, count, group)
    with torch._C._AutoDispatchBelowAutograd():
        return OPS["max_pool"](z, weight, *window, False)[0], statistics


def pooled_batch(z: Tensor, weight: Tensor | None, running: Running | None, window: Window) -> tuple[Tensor, Tensor]:
    """:func:`pooled_input` of z, ``[T, N, C, H, W]``, with the statistics of z in this process, and an update of the
    running statistics. On a GPU it reads z once.

    Raises:
        RuntimeError: on the CPU, if the statistics are not finite. The running statistics are then unchanged.
    """
    if torch.is_grad_enabled() and z.requires_grad:
        return _PooledBatch.apply(z, weight, running, window)
    out, _, statistics = _pool_with_statistics(z, weight, running, window, False)
    return out, statistics


def _pool_with_statistics(z, weight, running, window, need_positions):
    mean, var, tracked, momentum = running or (None, None, None, 0.0)
    with torch._C._AutoDispatchBelowAutograd():
        results = OPS["max_pool_statistics"](z, weight, mean, var, tracked, (momentum, *window, need_positions))
    note_change(running)
    return results


@called_directly
class _MaxPool(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, x, window):
        with torch._C._AutoDispatchBelowAutograd():
            out, positions = OPS["max_pool"](x, None, *window, True)
        ctx.window, ctx.size = window, x.shape[-2:]
        ctx.save_for_backward(positions)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        (positions,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _scattered(grad_out, positions, ctx.size, ctx.window), None
        return below_autograd("max_pool_backward", grad_out, positions, None, None, *ctx.size, *ctx.window), None


def _scattered(grad_out: Tensor, positions: Tensor, size, window: Window) -> Tensor:
    """The gradient of x by operations that can be differentiated again."""
    rows, columns = (torch.arange(n, device=positions.device) * window.stride for n in positions.shape[-2:])
    y = rows[:, None] - window.padding + positions // window.kernel
    x = columns - window.padding + positions % window.kernel
    flat = grad_out.new_zeros(*grad_out.shape[:-2], size[0] * size[1])
    places = (y * size[1] + x).flatten(-2).expand(*grad_out.shape[:-2], -1)
    return flat.scatter_add(-1, places, grad_out.flatten(-2)).unflatten(-1, tuple(size))


@called_directly
class _PooledInput(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, z, statistics, weight, window, training, count, group):
        with torch._C._AutoDispatchBelowAutograd():
            out, positions = OPS["max_pool"](z, weight, *window, True)
        ctx.set_materialize_grads(False)
        ctx.window, ctx.size, ctx.count, ctx.group = window, z.shape[-2:], count, group
        kept = statistics.detach()  # an output of its own
        if training:
            ctx.save_for_backward(positions, z, statistics)
        else:
            ctx.save_for_backward(positions)
            ctx.mark_non_differentiable(kept)
        return out, kept

    @staticmethod
    def backward(ctx, grad_out, grad_statistics):
        return _gradient_of_input(ctx, grad_out, grad_statistics), *(None,) * 6


@called_directly
class _PooledBatch(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, z, weight, running, window):
        out, positions, statistics = _pool_with_statistics(z, weight, running, window, True)
        ctx.set_materialize_grads(False)
        ctx.window, ctx.size, ctx.count, ctx.group = window, z.shape[-2:], z.numel() / z.shape[2], None
        ctx.save_for_backward(positions, z, statistics)
        return out, statistics

    @staticmethod
    def backward(ctx, grad_out, grad_statistics):
        return _gradient_of_input(ctx, grad_out, grad_statistics), None, None, None


def _gradient_of_input(ctx, grad_out: Tensor | None, grad_statistics: Tensor | None) -> Tensor | None:
    """dL/dz from the gradients of the pooled z and of the statistics."""
    positions, *more = ctx.saved_tensors
    z = affine = None
    if more:
        z, statistics = more
        affine = _affine(ctx, statistics, grad_statistics)
    if grad_out is None:
        if affine is None:
            return None
        grad_out = torch.zeros_like(positions, dtype=z.dtype)
    z = None if affine is None else z
    return below_autograd("max_pool_backward", grad_out, positions, z, affine, *ctx.size, *ctx.window)


def _affine(ctx, statistics: Tensor, grad: Tensor | None) -> Tensor | None:
    """What each value adds to its gradient because mean and variance depend on it, as max_pool_backward takes it:
    ``grad_z += dL/dmean / count + 2 dL/dvar / count (z - mean)``."""
    if ctx.group is not None:
        grad = torch.zeros_like(statistics) if grad is None else grad.clone()
        dist.all_reduce(grad, group=ctx.group)
    if grad is None:
        return None
    count = ctx.count.to(grad.dtype) if isinstance(ctx.count, Tensor) else ctx.count
    return torch.stack([grad[0] / count, grad[1] * 2 / count, statistics[0]])


def _setup_context(ctx, inputs, output):
    x, _, *window, need_positions = inputs
    ctx.window, ctx.size = Window(*window), x.shape[-2:]
    ctx.save_for_backward(output[1] if need_positions else None)
    ctx.mark_non_differentiable(output[1])


def _op_backward(ctx, grad_out, _):
    (positions,) = ctx.saved_tensors
    if positions is None:
        raise RuntimeError("max_pool has a gradient only with need_positions=True")
    grad_x = torch.ops.sewsnn.max_pool_backward(grad_out, positions, None, None, *ctx.size, *ctx.window)
    return grad_x, *(None,) * 5


# ---- shapes and strides without data


def like_images(x: Tensor, sizes, dtype: torch.dtype) -> Tensor:
    """An empty dense tensor ``[..., C, H, W]`` in the memory order of x; ``Images`` in csrc/ops/max_pool.cpp decides
    the same."""
    *outer, c, h, w = sizes
    last = not x.is_contiguous() and x.movedim(-3, -1).is_contiguous()
    return x.new_empty([*outer, h, w, c], dtype=dtype).movedim(-1, -3) if last else x.new_empty(sizes, dtype=dtype)


def _pool_fake(x, weight, kernel, stride, padding, need_positions):
    check_operands(x, weight)
    window = Window(kernel, stride, padding)
    sizes = [*x.shape[:-2], *map(window.count, x.shape[-2:])]
    positions = like_images(x, sizes, torch.uint8) if need_positions else x.new_empty(0, dtype=torch.uint8)
    return like_images(x, sizes, x.dtype), positions


def _statistics_fake(z, weight, running_mean, running_var, tracked, numbers):
    check_operands(z, weight, running_mean, running_var, tracked)
    _, *window, need_positions = numbers
    statistics = z.new_empty(2, z.shape[2], dtype=state_dtype(z.dtype))
    return *_pool_fake(z, weight, *map(int, window), need_positions), statistics


def _backward_fake(grad_out, positions, x, affine, height, width, kernel, stride, padding):
    check_operands(grad_out, positions, x, affine)
    return like_images(positions, [*grad_out.shape[:-2], height, width], grad_out.dtype)


if NATIVE_ERROR is None:
    torch.library.register_fake("sewsnn::max_pool", _pool_fake)
    torch.library.register_fake("sewsnn::max_pool_statistics", _statistics_fake)
    torch.library.register_fake("sewsnn::max_pool_backward", _backward_fake)
    torch.library.register_autograd("sewsnn::max_pool", _op_backward, setup_context=_setup_context)
    torch.library.register_autograd("sewsnn::max_pool_backward", no_double_backward)
