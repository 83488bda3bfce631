"""Shapes and strides of the results of batch norm + neuron + connection, without data: the fake kernels of the ops."""

import math

import torch
from torch import Tensor

from sewsnn.ops.neuron import V_FINAL, V_NONE, checkpoint_count, dense_strides, empty_state, states_of
from sewsnn.ops.options import ADD_BEFORE, AND, COUNT, IAND, NO_NEURON, NONE, SUM, from_numbers
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.registry import BY_NUMBER
from sewsnn.ops.shapes import check_kinds, check_operands, check_size
from sewsnn.ops.spec import NOTHING, check_flags


def _sequence(z: Tensor, T: int) -> tuple[list[int], list[int]]:
    """Sizes and strides of a tensor like z with its time axis."""
    seq = z.unsqueeze(0).expand(T, *z.shape) if T else z
    return list(seq.shape), dense_strides(seq)


def _statistics_fake(z, T, check):
    return z.new_empty(2, z.shape[1 if T else 2], dtype=state_dtype(z.dtype))


def _take_fake(z, running_mean, running_var, tracked, numbers):
    check_operands(z, running_mean, running_var, tracked)
    return _statistics_fake(z, int(numbers[0]), True)


def _update_fake(statistics, momentum, count, running_mean, running_var):
    check_operands(statistics, running_mean, running_var)


def _split(rest: tuple, count: int) -> tuple[int, int, tuple]:
    """T, the kind of neuron, and the ``count`` arguments of an op that follow its options, before ``extra``; checks
    the options."""
    (_, connect, T, kind, *neuron), others, extra = rest[:COUNT], rest[COUNT : COUNT + count], rest[COUNT + count :]
    if connect not in range(6):
        raise RuntimeError(f"unknown connection {connect}")
    if connect == SUM and kind == NO_NEURON:
        raise RuntimeError("the sum is a second result only with a neuron")
    if kind != NO_NEURON and not check_kinds((kind, *neuron), *extra).binary and connect in (AND, IAND):
        raise RuntimeError(f"AND and IAND need spikes that are 0 or 1, and those of neuron kind {kind} are not")
    return T, kind, others


def _forward_fake(z, shortcut, statistics, weight, bias, leak, *rest):
    if rest[1] == SUM:
        raise RuntimeError(f"unknown connection {SUM}: bn_neuron_forward cannot return the sum, call bn_neuron_sum")
    return any_forward_fake(z, shortcut, statistics, weight, bias, leak, *rest)


def _sum_fake(z, shortcut, statistics, weight, bias, leak, *rest):
    if rest[1] != SUM:
        raise RuntimeError(f"bn_neuron_sum needs the connection {SUM}, got {rest[1]}")
    v_mode, needs_grad, training, *extra = rest[COUNT:]
    out, v, checkpoints, _ = any_forward_fake(
        z, shortcut, statistics, weight, bias, leak, *rest[:COUNT], v_mode, needs_grad, False, training, *extra
    )
    return out, torch.empty_like(out), v, checkpoints


def any_forward_fake(z, shortcut, statistics, weight, bias, leak, *rest):
    T, kind, (v_mode, needs_grad, pack, _) = _split(rest, 4)
    check_operands(z, shortcut, statistics, weight, bias, leak, T=T)
    seq = z.unsqueeze(0).expand(T, *z.shape) if T else z
    steps, M, states = seq.shape[0], math.prod(seq.shape[1:]), states_of(kind)
    if pack and not (
        kind != NO_NEURON and BY_NUMBER[kind].binary and rest[1] in (NONE, ADD_BEFORE, SUM) and M % 8 == 0
    ):
        raise RuntimeError("only the spikes of a neuron, 0 or 1, can be packed, 8 to a byte")
    kept = states * checkpoint_count(steps) * M if needs_grad else 0
    return (
        z.new_empty_strided(seq.shape, dense_strides(seq)),
        empty_state(seq, kind, V_FINAL if v_mode else V_NONE),
        z.new_empty(kept, dtype=state_dtype(z.dtype)),
        z.new_empty(steps * M // 8 if pack else 0, dtype=torch.uint8),
    )


def _reduce_fake(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints, *rest):
    T, _, (need_leak,) = _split(rest, 1)
    check_operands(z, grad_out, grad_skip, shortcut, statistics, weight, bias, leak, checkpoints, T=T)
    sizes, strides = _sequence(z, T)
    state = state_dtype(z.dtype)
    return (
        z.new_empty(2, sizes[2], dtype=state),
        z.new_empty(0) if grad_skip is None and rest[1] != SUM else z.new_empty_strided(sizes, strides),
        leak.new_empty(leak.shape) if need_leak else z.new_empty(0, dtype=state),
    )


def _apply_fake(grad_out, z, shortcut, statistics, weight, bias, leak, checkpoints, sums, count, *rest):
    T, _, (need_shortcut,) = _split(rest, 1)
    if rest[1] == SUM:
        raise RuntimeError("after bn_neuron_reduce of a sum, apply its grad_sum without a neuron")
    check_operands(z, grad_out, shortcut, statistics, weight, bias, leak, checkpoints, sums, T=T)
    sizes, strides = _sequence(z, T)
    return (
        z.new_empty_strided(sizes[1:], strides[1:]) if T else z.new_empty_strided(sizes, strides),
        z.new_empty_strided(sizes, strides) if need_shortcut else z.new_empty(0),
    )


def _unpack_fake(bits, sizes, strides, dtype):
    check_size(math.prod(sizes), dtype)
    return bits.new_empty_strided(sizes, strides, dtype=dtype)


def _train_fake(z, shortcut, weight, bias, leak, running_mean, running_var, tracked, numbers):
    *given, _, v_mode, needs_grad, pack = numbers
    arguments, tail = from_numbers(given)
    check_flags(needs_grad, pack)
    check_operands(z, running_mean, running_var, tracked)
    results = any_forward_fake(z, shortcut, None, weight, bias, leak, *arguments, v_mode, needs_grad, pack, True, *tail)
    out, *others = results
    total = torch.empty_like(out) if arguments[1] == SUM else None
    return out, *(t if t.numel() else None for t in others), _statistics_fake(z, arguments[2], True), total


def backward_fake(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints, numbers):
    *given, training, need_shortcut, need_leak = numbers
    arguments, tail = from_numbers(given)
    check_flags(training, need_shortcut, need_leak)
    tensors = (z, shortcut, statistics, weight, bias, leak, checkpoints)
    sums, grad_sum, grad_leak = _reduce_fake(grad_out, grad_skip, *tensors, *arguments, need_leak, *tail)
    if arguments[1] == SUM:
        arguments, tail, tensors = (
            (arguments[0], NONE, arguments[2], *NOTHING),
            (),
            (z, None, *tensors[2:5], None, None),
        )
    grad_z, grad_shortcut = _apply_fake(grad_out, *tensors, sums, 1.0, *arguments, need_shortcut, *tail)
    wanted = grad_shortcut if need_shortcut else None, grad_sum if grad_sum.numel() or grad_skip is not None else None
    return grad_z, *wanted, sums[1], sums[0], grad_leak if need_leak else None


def register() -> None:
    """Registers the fake kernels of all ops of this file."""
    fakes = {
        "unpack_spikes": _unpack_fake,
        "bn_statistics": _statistics_fake,
        "bn_take_statistics": _take_fake,
        "bn_update": _update_fake,
        "bn_neuron_train": _train_fake,
        "bn_neuron_forward": _forward_fake,
        "bn_neuron_sum": _sum_fake,
        "bn_neuron_backward": backward_fake,
        "bn_neuron_reduce": _reduce_fake,
        "bn_neuron_apply": _apply_fake,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"sewsnn::{name}", fake)
