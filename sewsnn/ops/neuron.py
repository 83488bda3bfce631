"""The native neuron op: fake kernels (shapes and strides without data) and autograd, around ``torch.ops.sewsnn``.

``neuron_forward`` returns s, v and the checkpoints backward needs for T > 16; what is not asked for is an empty tensor.
Backward keeps x and those checkpoints, nothing else, and recomputes h.
"""

import math

import torch
from torch import Tensor

from sewsnn.ops.load import NATIVE_ERROR
from sewsnn.ops.reference import state_dtype

IF, LIF, PLIF = 0, 1, 2  # NeuronKind in csrc/core/params.h
V_NONE, V_FINAL, V_SEQUENCE = 0, 1, 2  # which v is returned
CHUNK = 16  # kChunk in csrc/core/params.h


def multistep(
    x_seq: Tensor,
    v: Tensor | None,
    leak: Tensor | None,
    *,
    kind: int,
    tau: float,
    decay_input: bool,
    v_threshold: float,
    v_reset: float | None,
    surrogate,
    detach_reset: bool,
    v_mode: int,
) -> tuple[Tensor, Tensor | None]:
    """Calls the compiled kernels; arguments as checked and completed by ``sewsnn.functional``."""
    needs_grad = torch.is_grad_enabled() and (
        x_seq.requires_grad or (v is not None and v.requires_grad) or (leak is not None and leak.requires_grad)
    )
    s_seq, v_out, _ = torch.ops.sewsnn.neuron_forward(
        x_seq,
        v,
        leak,
        kind,
        tau,
        decay_input,
        v_threshold,
        v_reset,
        surrogate.kind,
        surrogate.parameter,
        detach_reset,
        v_mode,
        needs_grad,
    )
    return s_seq, None if v_mode == V_NONE else v_out


def dense_strides(x: Tensor) -> list[int]:
    """Strides of a dense result: T outermost, one time-step in the order it has in x, contiguous if that is not dense.

    The twin of ``Layout`` in csrc/ops/layout.h.
    """
    sizes, strides = list(x.shape[1:]), list(x.stride()[1:])
    expected, dense = 1, True
    for stride, size in sorted((stride, size) for stride, size in zip(strides, sizes, strict=True) if size != 1):
        dense = dense and stride == expected
        expected = expected * size
    if not dense or math.prod(sizes) == 0:
        strides = []
        stride = 1
        for size in reversed(sizes):
            strides.insert(0, stride)
            stride = stride * max(size, 1)
    return [max(math.prod(sizes), 1), *strides]


def checkpoint_count(T: int) -> int:
    """Potentials kept for backward: one before each chunk of CHUNK time-steps but the first."""
    return (T - 1) // CHUNK if T > CHUNK else 0


def _fake_v(x, strides, v_mode):
    state = state_dtype(x.dtype)
    if v_mode == V_SEQUENCE:
        return x.new_empty_strided(x.shape, strides, dtype=state)
    if v_mode == V_FINAL:
        return x.new_empty_strided(x.shape[1:], strides[1:], dtype=state)
    return x.new_empty(0, dtype=state)


def _forward_fake(
    x, v, leak, kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach, v_mode, needs_grad
):
    strides = dense_strides(x)
    kept = checkpoint_count(x.shape[0]) * math.prod(x.shape[1:]) if needs_grad else 0
    return (
        x.new_empty_strided(x.shape, strides),
        _fake_v(x, strides, v_mode),
        x.new_empty(kept, dtype=state_dtype(x.dtype)),
    )


def _backward_fake(grad_s, grad_v, x, v, leak, checkpoints, *options):
    *_, need_v, need_leak = options
    strides = dense_strides(x)
    return (
        x.new_empty_strided(x.shape, strides),
        _fake_v(x, strides, V_FINAL if need_v else V_NONE),
        leak.new_empty(()) if need_leak else x.new_empty(0, dtype=state_dtype(x.dtype)),
    )


def _setup_context(ctx, inputs, output):
    x, v, leak, *ctx.options, ctx.v_mode, _ = inputs
    checkpoints = output[2]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(checkpoints)
    ctx.save_for_backward(x, v, leak, checkpoints)


def _backward(ctx, grad_s, grad_v, _):
    rest = (None,) * 10
    if ctx.v_mode == V_NONE:
        grad_v = None
    if grad_s is None and grad_v is None:
        return None, None, None, *rest
    x, v, leak, checkpoints = ctx.saved_tensors
    need_v, need_leak = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
    grad_x, grad_v0, grad_leak = torch.ops.sewsnn.neuron_backward(
        grad_s, grad_v, x, v, leak, checkpoints, *ctx.options, ctx.v_mode, need_v, need_leak
    )
    return grad_x, grad_v0 if need_v else None, grad_leak if need_leak else None, *rest


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "sewsnn's compiled neurons have no second derivative (the spike's surrogate has none); "
        "use backend='torch' to differentiate twice"
    )


if NATIVE_ERROR is None:
    torch.library.register_fake("sewsnn::neuron_forward", _forward_fake)
    torch.library.register_fake("sewsnn::neuron_backward", _backward_fake)
    torch.library.register_autograd("sewsnn::neuron_forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("sewsnn::neuron_backward", _no_double_backward)
