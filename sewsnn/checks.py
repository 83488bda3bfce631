"""Checks of arguments: each error names the argument, what was expected, and what came."""

import math
import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sewsnn.ops import reference
from sewsnn.ops.shapes import check_size

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_number(name: str, value) -> None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not abs(value) < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def is_finite(value) -> bool:
    """``math.isfinite``, which does not take the symbol that torch.compile makes of a number that changed."""
    return abs(value) < math.inf


def constants(*values) -> list[float | None]:
    """Numbers as the kernels take them: floats. While torch.compile traces, a number that changed between calls is a
    symbol, which no op takes; writing it down fixes it, and each of its values gets a graph."""
    if torch.compiler.is_compiling():
        return [None if value is None else float(f"{value!r}") for value in values]
    return [None if value is None else float(value) for value in values]


_TRACED = ("FakeTensor", "FunctionalTensor")  # by name: importing them takes long


def outlives_its_code(x: Tensor) -> bool:
    """Whether a tensor made now can be kept: not inside a transform of torch.func or a level of forward-mode
    differentiation, whose wrappers mean nothing once these have ended, and no tensor of a tracer, which has a shape
    alone."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return type(x) is Tensor or type(x).__name__ not in _TRACED


def backward_number() -> int:
    """The number of the backward pass that runs now; -1: none does. What runs inside one is the repetition of a forward
    by activation checkpointing (``torch.utils.checkpoint``), or a hook."""
    return torch._C._current_graph_task_id()


def check_neuron(v_threshold, v_reset, surrogate_function) -> None:
    """The arguments all neurons share."""
    check_number("v_threshold", v_threshold)
    if v_reset is not None:
        check_number("v_reset", v_reset)
    if not callable(surrogate_function):
        raise TypeError(
            f"surrogate_function must be one of sewsnn.surrogate, or callable on h - v_threshold, "
            f"got {type(surrogate_function).__name__}"
        )


def check_tau(tau, name: str = "tau") -> None:
    """tau of LIF."""
    check_number(name, tau)
    if tau < 1:
        raise ValueError(f"{name} must be at least 1, got {tau}")


def check_floating(name: str, x) -> None:
    """A dense tensor of a dtype there are kernels for."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")
    if x.layout != torch.strided or x.is_nested:
        _check_dense(name, x)


def _check_dense(name: str, x: Tensor) -> None:
    """Neither sparse nor nested."""
    if x.is_nested or x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got {'a nested one' if x.is_nested else x.layout}")


def check_input(x_seq) -> None:
    """x_seq of every neuron."""
    check_floating("x_seq", x_seq)
    if x_seq.dim() == 0:
        raise ValueError("x_seq must be [T, ...], got a tensor without dimensions")
    if x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must have at least one time-step, got T = 0 (shape {list(x_seq.shape)})")


_LARGE = 1 << 28  # numbers


def check_room(x_seq: Tensor, state: torch.dtype) -> None:
    """There is memory for a potential per time-step, which the torch backend gathers one by one. Large ones alone are
    asked: a loop over more time-steps than there is memory for would be killed, hours later.

    Raises:
        RuntimeError: there is not.
    """
    if torch.compiler.is_compiling() or x_seq.numel() < _LARGE:
        return
    check_size(x_seq.numel(), state)
    if x_seq.device.type == "cpu":
        x_seq.new_empty(x_seq.shape, dtype=state)


def check_v(v, x_seq: Tensor) -> None:
    """The initial potential."""
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
            "v was made in torch.inference_mode() and cannot take part in training: pass v.clone(), or start from rest "
            "(a node: reset())"
        )


def check_w(w, x_seq: Tensor) -> None:
    """The parameter of PLIF."""
    if not isinstance(w, Tensor):
        raise TypeError(f"w must be a tensor, got {type(w).__name__}")
    _check_dense("w", w)
    if w.numel() != 1 or not w.dtype.is_floating_point:
        raise ValueError(f"w must be one floating-point number, got shape {list(w.shape)}, {w.dtype}")
    if w.device != x_seq.device:
        raise ValueError(f"w must be on the device of x_seq, {x_seq.device}, got {w.device}")
