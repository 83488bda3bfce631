"""Shapes and strides of the results of batch norm + neuron + connection, without data: the fake kernels of the ops."""

import math

import torch
from torch import Tensor

from sewsnn.ops.neuron import checkpoint_count, dense_strides
from sewsnn.ops.options import NO_NEURON, Options, check_flags, from_numbers
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.shapes import check_kinds, check_operands, check_size


def _sequence(z: Tensor, T: int) -> tuple[list[int], list[int]]:
    """Sizes and strides of a tensor like z with its time axis."""
    seq = z.unsqueeze(0).expand(T, *z.shape) if T else z
    return list(seq.shape), dense_strides(seq)


def _statistics_fake(z, T, check):
    return z.new_empty(2, z.shape[1 if T else 2], dtype=state_dtype(z.dtype))


def _update_fake(statistics, momentum, count, running_mean, running_var):
    check_operands(statistics, running_mean, running_var)


def _check_options(*values) -> None:
    options = Options(*values)
    if options.connect not in range(5):
        raise RuntimeError(f"unknown connection {options.connect}")
    if options.kind != NO_NEURON:
        check_kinds(options.kind, options.surrogate)


def _forward_fake(z, shortcut, statistics, weight, bias, leak, eps, connect, T, kind, *rest):
    *_, v_mode, needs_grad, pack, _ = rest
    _check_options(eps, connect, T, kind, *rest[:7])
    check_operands(z, shortcut, statistics, weight, bias, leak, T=T)
    sizes, strides = _sequence(z, T)
    state, M = state_dtype(z.dtype), math.prod(sizes[1:])
    spiking = kind != NO_NEURON
    v = z.new_empty_strided(sizes[1:], strides[1:], dtype=state) if v_mode and spiking else z.new_empty(0, dtype=state)
    kept = checkpoint_count(sizes[0]) * M if needs_grad and spiking else 0
    return (
        z.new_empty_strided(sizes, strides),
        v,
        z.new_empty(kept, dtype=state),
        z.new_empty(sizes[0] * M // 8 if pack else 0, dtype=torch.uint8),
    )


def _reduce_fake(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints, eps, connect, T, *rest):
    _check_options(eps, connect, T, *rest[:8])
    check_operands(z, grad_out, grad_skip, shortcut, statistics, weight, bias, leak, checkpoints, T=T)
    sizes, strides = _sequence(z, T)
    state = state_dtype(z.dtype)
    return (
        z.new_empty(2, sizes[2], dtype=state),
        z.new_empty(0) if grad_skip is None else z.new_empty_strided(sizes, strides),
        leak.new_empty(()) if rest[-1] else z.new_empty(0, dtype=state),
    )


def _apply_fake(
    grad_out, z, shortcut, statistics, weight, bias, leak, checkpoints, sums, count, eps, connect, T, *rest
):
    _check_options(eps, connect, T, *rest[:8])
    check_operands(z, grad_out, shortcut, statistics, weight, bias, leak, checkpoints, sums, T=T)
    sizes, strides = _sequence(z, T)
    return (
        z.new_empty_strided(sizes[1:], strides[1:]) if T else z.new_empty_strided(sizes, strides),
        z.new_empty_strided(sizes, strides) if rest[-1] else z.new_empty(0),
    )


def _unpack_fake(bits, sizes, strides, dtype):
    check_size(math.prod(sizes), dtype)
    return bits.new_empty_strided(sizes, strides, dtype=dtype)


def _train_fake(z, shortcut, weight, bias, leak, running_mean, running_var, tracked, numbers):
    *given, _, v_mode, needs_grad, pack = numbers
    options = from_numbers(given)
    check_flags(needs_grad, pack)
    check_operands(z, running_mean, running_var, tracked)
    results = _forward_fake(z, shortcut, None, weight, bias, leak, *options, v_mode, needs_grad, pack, True)
    out, *others = results
    return out, *(t if t.numel() else None for t in others), _statistics_fake(z, options.T, True)


def _backward_fake(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints, numbers):
    *given, training, need_shortcut, need_leak = numbers
    options = from_numbers(given)
    check_flags(training, need_shortcut, need_leak)
    tensors = (z, shortcut, statistics, weight, bias, leak, checkpoints)
    sums, grad_sum, grad_leak = _reduce_fake(grad_out, grad_skip, *tensors, *options, need_leak)
    grad_z, grad_shortcut = _apply_fake(grad_out, *tensors, sums, 1.0, *options, need_shortcut)
    wanted = grad_shortcut if need_shortcut else None, None if grad_skip is None else grad_sum
    return grad_z, *wanted, sums[1], sums[0], grad_leak if need_leak else None


def register() -> None:
    """Registers the fake kernels of all ops of this file."""
    fakes = {
        "unpack_spikes": _unpack_fake,
        "bn_statistics": _statistics_fake,
        "bn_update": _update_fake,
        "bn_neuron_train": _train_fake,
        "bn_neuron_forward": _forward_fake,
        "bn_neuron_backward": _backward_fake,
        "bn_neuron_reduce": _reduce_fake,
        "bn_neuron_apply": _apply_fake,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"sewsnn::{name}", fake)
