"""The native neuron op: fake kernels (shapes and strides without data) and autograd around ``torch.ops.sewsnn``.

``neuron_forward`` returns s, the state and the checkpoints that backward needs for T > 16. An output that is not
requested is an empty tensor. Backward keeps only x and those checkpoints, and recomputes h.

There are two autograd formulas. The registered formula of the op serves code that traces the op (torch.compile,
torch.export) or calls it directly. An eager call of a neuron goes through an autograd.Function, which calls the op
below autograd: the same formula at less than half the overhead (docs/kernels.md), and torch.func can differentiate it.
"""

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sewsnn.ops.load import NATIVE_ERROR
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.registry import BY_NUMBER
from sewsnn.ops.shapes import check_kinds, check_operands, check_size
from sewsnn.ops.spec import COUNT, NeuronSpec

V_NONE, V_FINAL, V_SEQUENCE = 0, 1, 2  # which state the op returns: none, the last, all
CHUNK = 16  # kChunk in csrc/core/params.h


def multistep(
    x_seq: Tensor, state: Tensor | None, learnt: Tensor | None, spec: NeuronSpec, v_mode: int
) -> tuple[Tensor, Tensor | None]:
    """Calls the compiled kernels. ``sewsnn.functional`` has checked the arguments."""
    needs_grad = torch.is_grad_enabled() and (
        x_seq.requires_grad
        or (state is not None and state.requires_grad)
        or (learnt is not None and learnt.requires_grad)
    )
    arguments, tail = spec.arguments, spec.tail
    if torch.compiler.is_compiling():
        s_seq, out, _ = torch.ops.sewsnn.neuron_forward(x_seq, state, learnt, *arguments, v_mode, needs_grad, *tail)
    elif needs_grad or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        neuron = _Neuron
        if torch._C._are_functorch_transforms_active():
            neuron = _FuncNeuron
            _check_samples(x_seq)
        s_seq, out, _ = neuron.apply(x_seq, state, learnt, (arguments, v_mode, tail))
    else:
        with _BelowAutograd():
            s_seq, out, _ = torch.ops.sewsnn.neuron_forward.default(
                x_seq, state, learnt, *arguments, v_mode, False, *tail
            )
    return s_seq, None if v_mode == V_NONE else out


def _check_samples(x: Tensor) -> None:
    """Raises ValueError if torch.func.vmap maps over 0 samples: torch's vmap rule cannot return a result then."""
    inner = x
    while torch._C._functorch.is_functorch_wrapped_tensor(inner):
        inner = torch._C._functorch.get_unwrapped(inner)
    if x.numel() and not inner.numel():
        raise ValueError("x_seq: torch.func.vmap needs at least one sample, got 0")


def dense_strides(x: Tensor) -> list[int]:
    """Strides of a dense result: T outermost, one time-step in the order of x, or contiguous if that order is not
    dense.

    ``Layout`` in csrc/ops/layout.h computes the same strides.
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
    """Number of potentials kept for backward: one before each chunk of CHUNK time-steps, except the first chunk."""
    return (T - 1) // CHUNK if T > CHUNK else 0


def states_of(kind: int) -> int:
    """Number of states of a neuron; 0 for no neuron."""
    return BY_NUMBER[kind].states if kind >= 0 else 0


def empty_state(x: Tensor, kind: int, v_mode: int) -> Tensor:
    """The state that an op returns for the input x: ``[...]`` or ``[T, ...]``, with k > 1 states ``[k, ...]`` or
    ``[k, T, ...]``; without elements if it is not requested."""
    dtype, states = state_dtype(x.dtype), states_of(kind)
    if v_mode == V_NONE or not states:
        return x.new_empty(0, dtype=dtype)
    sizes, strides = list(x.shape), dense_strides(x)
    if v_mode == V_FINAL:
        sizes, strides = sizes[1:], strides[1:]
    check_size(math.prod(sizes) * states, dtype)
    if states > 1:
        one = math.prod(sizes[1:] if v_mode == V_SEQUENCE else sizes)
        steps = sizes[0] if v_mode == V_SEQUENCE else 1
        sizes, strides = [states, *sizes], [max(one, 1) * steps, *strides]
    return x.new_empty_strided(sizes, strides, dtype=dtype)


def _forward_fake(x, v, leak, *rest):
    arguments, (v_mode, needs_grad, *extra) = rest[:COUNT], rest[COUNT:]
    check_kinds(arguments, *extra)
    check_operands(x, v, leak)
    kind = arguments[0]
    kept = states_of(kind) * checkpoint_count(x.shape[0]) * math.prod(x.shape[1:]) if needs_grad else 0
    return (
        x.new_empty_strided(x.shape, dense_strides(x)),
        empty_state(x, kind, v_mode),
        x.new_empty(kept, dtype=state_dtype(x.dtype)),
    )


def _backward_fake(grad_s, grad_v, x, v, leak, checkpoints, *rest):
    arguments, (_, need_v, need_leak, *extra) = rest[:COUNT], rest[COUNT:]
    check_kinds(arguments, *extra)
    check_operands(x, grad_s, grad_v, v, leak, checkpoints)
    return (
        x.new_empty_strided(x.shape, dense_strides(x)),
        empty_state(x, arguments[0], V_FINAL if need_v else V_NONE),
        leak.new_empty(leak.shape) if need_leak else x.new_empty(0, dtype=state_dtype(x.dtype)),
    )


# Skips the op's registered autograd formula, which is Python code and takes as long as the op.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def _remember(ctx, x, v, leak, checkpoints, call):
    ctx.call = call
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(checkpoints)
    ctx.save_for_backward(x, v, leak, checkpoints)


def _gradients(ctx, grad_s, grad_v):
    """Gradients of x, v and leak; None where autograd needs none."""
    arguments, v_mode, tail = ctx.call
    if v_mode == V_NONE:
        grad_v = None
    if grad_s is None and grad_v is None:
        return None, None, None
    x, v, leak, checkpoints = ctx.saved_tensors
    _, need_v, need_leak, *_ = ctx.needs_input_grad
    inputs = (grad_s, grad_v, x, v, leak, checkpoints, *arguments, v_mode, need_v, need_leak, *tail)
    if torch.is_grad_enabled():  # create_graph=True: a second differentiation raises an error
        grad_x, grad_v0, grad_leak = _Gradients.apply(*inputs)
    else:
        grad_x, grad_v0, grad_leak = _gradients_below_autograd(*inputs)
    return grad_x, grad_v0 if need_v else None, grad_leak if need_leak else None


def _forward_below_autograd(x, v, leak, call):
    arguments, v_mode, tail = call
    with _BelowAutograd():
        return torch.ops.sewsnn.neuron_forward.default(x, v, leak, *arguments, v_mode, True, *tail)


def _gradients_below_autograd(*arguments):
    with _BelowAutograd():
        return torch.ops.sewsnn.neuron_backward.default(*arguments)


def no_forward_mode(ctx, *tangents):
    """The forward-mode formula (jvp) of every op: it raises, because there is no forward-mode derivative."""
    raise NotImplementedError(
        "neurons have no forward-mode derivative (jvp, torch.autograd.forward_ad): the surrogate gradient is defined "
        "only for reverse mode; use backward, torch.func.grad or torch.func.vjp"
    )


def called_directly(function):
    """A class decorator: autograd's engine calls ``function.backward`` itself, as it is now.

    The engine calls ``apply`` of the node, and the ``apply`` of torch spends 5 us on finding the method to call.
    """
    node = getattr(function, "_backward_cls", None)  # not a public name of torch
    if node is not None:
        node.apply = function.backward
    return function


@called_directly
class _Neuron(torch.autograd.Function):
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(ctx, x, v, leak, call):
        output = _forward_below_autograd(x, v, leak, call)
        _remember(ctx, x, v, leak, output[2], call)
        return output

    @staticmethod
    def backward(ctx, grad_s, grad_v, _):
        return *_gradients(ctx, grad_s, grad_v), None


class _FuncNeuron(torch.autograd.Function):
    """:class:`_Neuron` in the form that torch.func needs, which costs 20 us more per call."""

    generate_vmap_rule = True
    forward = staticmethod(_forward_below_autograd)
    backward = _Neuron.backward
    jvp = _Neuron.jvp

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, call = inputs
        _remember(ctx, *tensors, output[2], call)


def no_double_backward(ctx, *grads):
    """The autograd formula of every op that computes gradients: it raises, because there is no second derivative."""
    raise RuntimeError(
        "sewsnn's compiled neurons have no second derivative (the spike's surrogate has none); "
        "use backend='torch' to differentiate twice"
    )


class _Gradients(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(_gradients_below_autograd)
    backward = staticmethod(no_double_backward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


def _setup_context(ctx, inputs, output):
    x, v, leak, *rest = inputs
    arguments, (v_mode, _, extra) = rest[:COUNT], rest[COUNT:]
    _remember(ctx, x, v, leak, output[2], (arguments, v_mode, (extra,)))


def _backward(ctx, grad_s, grad_v, _):
    return *_gradients(ctx, grad_s, grad_v), *(None,) * (len(ctx.needs_input_grad) - 3)


if NATIVE_ERROR is None:
    torch.library.register_fake("sewsnn::neuron_forward", _forward_fake)
    torch.library.register_fake("sewsnn::neuron_backward", _backward_fake)
    torch.library.register_autograd("sewsnn::neuron_forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("sewsnn::neuron_backward", no_double_backward)
