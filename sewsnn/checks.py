"""Checks of arguments. Each error names the argument, the expected value and the value it got."""

import math
import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sewsnn.ops import reference
from sewsnn.ops.shapes import check_size

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_number(name: str, value) -> None:
    """Raises TypeError or ValueError unless ``value`` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not abs(value) < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def is_finite(value) -> bool:
    """Like ``math.isfinite``, but also takes the symbols that torch.compile makes of a number that changed between
    calls."""
    return abs(value) < math.inf


def constants(*values) -> list[float | None]:
    """Converts numbers to the floats that the ops take; None stays None.

    While torch.compile traces, a number that changed between calls is a symbol, and ops take no symbols. ``repr`` makes
    the symbol a constant, so torch.compile makes one graph for each value.
    """
    if torch.compiler.is_compiling():
        return [None if value is None else float(f"{value!r}") for value in values]
    return [None if value is None else float(value) for value in values]


_TRACED = ("FakeTensor", "FunctionalTensor")  # compared by name, because importing the classes is slow


def outlives_its_code(x: Tensor) -> bool:
    """Returns whether a node may keep a tensor that is made now.

    It may not inside a torch.func transform or forward-mode differentiation, because their tensors become invalid when
    they end. It may not keep a tensor of a tracer either, which has a shape but no values.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return type(x) is Tensor or type(x).__name__ not in _TRACED


def backward_number() -> int:
    """The number of the backward pass that is running; -1 if none is.

    Code runs inside a backward pass when activation checkpointing (``torch.utils.checkpoint``) repeats a forward, or in
    a hook.
    """
    return torch._C._current_graph_task_id()


def check_neuron(v_threshold, v_reset, surrogate_function) -> None:
    """Checks the arguments that all neurons share."""
    check_number("v_threshold", v_threshold)
    if v_reset is not None:
        check_number("v_reset", v_reset)
    if not callable(surrogate_function):
        raise TypeError(
            f"surrogate_function must be one of sewsnn.surrogate, or callable on h - v_threshold, "
            f"got {type(surrogate_function).__name__}"
        )


def check_tau(tau, name: str = "tau") -> None:
    """Checks the membrane time constant of LIF: a finite number of at least 1."""
    check_number(name, tau)
    if tau < 1:
        raise ValueError(f"{name} must be at least 1, got {tau}")


def check_floating(name: str, x) -> None:
    """Checks that x is a dense tensor of a dtype that the kernels support."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")
    if x.layout != torch.strided or x.is_nested:
        _check_dense(name, x)


def _check_dense(name: str, x: Tensor) -> None:
    """Checks that x is neither sparse nor nested."""
    if x.is_nested or x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {'a nested one' if x.is_nested else x.layout}")


def check_input(x_seq) -> None:
    """Checks the input ``x_seq`` of a neuron."""
    check_floating("x_seq", x_seq)
    if x_seq.dim() == 0:
        raise ValueError("x_seq must be [T, ...], got a tensor without dimensions")
    if x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must have at least one time-step, got T = 0 (shape {list(x_seq.shape)})")


_LARGE = 1 << 28  # elements


def check_room(x_seq: Tensor, state: torch.dtype) -> None:
    """Checks that memory suffices for one membrane potential per time-step, which the torch backend collects one by
    one.

    Only large inputs are checked. Without the check, a loop over more time-steps than fit into memory would be killed
    hours later.

    Raises:
        RuntimeError: there is too little memory.
    """
    if torch.compiler.is_compiling() or x_seq.numel() < _LARGE:
        return
    check_size(x_seq.numel(), state)
    if x_seq.device.type == "cpu":
        x_seq.new_empty(x_seq.shape, dtype=state)


def check_v(v, x_seq: Tensor) -> None:
    """Checks the initial membrane potential: its shape, dtype, device, and whether autograd can use it."""
    if v is None:
        return
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a tensor or None, got {type(v).__name__}")
    _check_dense("v", v)
    if v.shape != x_seq.shape[1:]:
        raise ValueError(
            f"v must have the shape of one time-step of x_seq, {list(x_seq.shape[1:])}, got {list(v.shape)}; "
            "a node that keeps its state needs reset() before another shape"
        )
    state = reference.state_dtype(x_seq.dtype)
    if v.dtype not in (x_seq.dtype, state):
        raise TypeError(
            f"v must be {state} (or the dtype of x_seq, {x_seq.dtype}), got {v.dtype}; a node that keeps its state "
            "needs reset() before another dtype"
        )
    if v.device != x_seq.device:
        raise ValueError(
            f"v must be on the device of x_seq, {x_seq.device}, got {v.device}; a node that keeps its state needs "
            "reset() before another device"
        )
    if (
        not torch.compiler.is_compiling()
        and v.is_inference()
        and torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
    ):
        raise ValueError(
            "v was made in torch.inference_mode(), and autograd cannot use it in training: pass v.clone(), or start "
            "from rest (for a node: call reset())"
        )


def check_w(w, x_seq: Tensor) -> None:
    """Checks the parameter of PLIF: one floating-point number on the device of x_seq."""
    if not isinstance(w, Tensor):
        raise TypeError(f"w must be a tensor, got {type(w).__name__}")
    _check_dense("w", w)
    if w.numel() != 1 or not w.dtype.is_floating_point:
        raise ValueError(f"w must be one floating-point number, got shape {list(w.shape)}, {w.dtype}")
    if w.device != x_seq.device:
        raise ValueError(f"w must be on the device of x_seq, {x_seq.device}, got {w.device}")
