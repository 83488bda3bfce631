"""Checks of arguments. Each error names the argument, the expected value and the value it got."""

import math
import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sewsnn.ops import reference
from sewsnn.ops.shapes import check_size

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def is_finite(value) -> bool:
    """Like ``math.isfinite``, but also takes the symbols that torch.compile makes of a number that changed between
    calls."""
    return abs(value) < math.inf


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


def split(name: str, x, T) -> Tensor:
    """Gives a merged batch ``[T * N, ...]`` its time axis: ``[T, N, ...]``, a view of the same memory.

    Raises:
        TypeError, ValueError: x is no tensor, T is no number of time-steps, or x has no multiple of T rows.
    """
    if isinstance(T, bool) or not isinstance(T, numbers.Integral):
        raise TypeError(f"T must be the number of time-steps in the first dimension of {name}, got {T!r}")
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dim() == 0 or x.shape[0] % T:
        raise ValueError(f"{name} must be [T * N, ...] with T = {T}, got shape {list(x.shape)}")
    return x.unflatten(0, (T, x.shape[0] // T))


def check_input(x_seq) -> None:
    """Checks the input ``x_seq`` of a neuron."""
    check_floating("x_seq", x_seq)
    if x_seq.dim() == 0:
        raise ValueError("x_seq must be [T, ...], got a tensor without dimensions")
    if x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must have at least one time-step, got T = 0 (shape {list(x_seq.shape)})")


_LARGE = 1 << 28  # elements


def check_room(x_seq: Tensor, state: torch.dtype, states: int) -> None:
    """Checks that memory suffices for the states of every time-step, which the torch backend collects one by one.

    Only large inputs are checked. Without the check, a loop over more time-steps than fit into memory would be killed
    hours later.

    Raises:
        RuntimeError: there is too little memory.
    """
    if torch.compiler.is_compiling() or x_seq.numel() < _LARGE:
        return
    check_size(states * x_seq.numel(), state)
    if x_seq.device.type == "cpu":
        x_seq.new_empty((states, *x_seq.shape), dtype=state)


def check_v(v, x_seq: Tensor, name: str = "v", states: int = 1) -> None:
    """Checks an initial state, for example the membrane potential: its shape, dtype, device, and whether autograd can
    use it. ``states``: number of states that it holds, one ``[...]`` or several ``[states, ...]``."""
    if v is None:
        return
    if not isinstance(v, Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {type(v).__name__}")
    _check_dense(name, v)
    shape = x_seq.shape[1:] if states == 1 else torch.Size((states, *x_seq.shape[1:]))
    if v.shape != shape:
        raise ValueError(
            f"{name} must have the shape of one time-step of x_seq, {list(shape)}, got {list(v.shape)}; "
            "a node that keeps its state needs reset() before another shape"
        )
    state = reference.state_dtype(x_seq.dtype)
    if v.dtype not in (x_seq.dtype, state):
        raise TypeError(
            f"{name} must be {state} (or the dtype of x_seq, {x_seq.dtype}), got {v.dtype}; a node that keeps its "
            "state needs reset() before another dtype"
        )
    if v.device != x_seq.device:
        raise ValueError(
            f"{name} must be on the device of x_seq, {x_seq.device}, got {v.device}; a node that keeps its state needs "
            "reset() before another device"
        )
    if (
        not torch.compiler.is_compiling()
        and v.is_inference()
        and torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
    ):
        raise ValueError(
            f"{name} was made in torch.inference_mode(), and autograd cannot use it in training: pass {name}.clone(), "
            "or start from rest (for a node: call reset())"
        )


def check_channels(name: str, shape, channels: int | None, axis: int) -> None:
    """Checks that an input has as many channels as the neuron has parameters; ``channels`` None: one for all."""
    if channels is None or (len(shape) > axis and shape[axis] == channels):
        return
    dims = "[T, N, C, ...]" if axis == 2 else "[N, C, ...]"
    raise ValueError(f"{name} must be {dims} with C = {channels} (channels={channels}), got shape {list(shape)}")


def check_w(w, x_seq: Tensor) -> None:
    """Checks the parameter w of PLIF: one floating-point number on the device of x_seq."""
    if not isinstance(w, Tensor):
        raise TypeError(f"w must be a tensor, got {type(w).__name__}")
    _check_dense("w", w)
    if w.numel() != 1 or not w.dtype.is_floating_point:
        raise ValueError(f"w must be one floating-point number, got shape {list(w.shape)}, {w.dtype}")
    if w.device != x_seq.device:
        raise ValueError(f"w must be on the device of x_seq, {x_seq.device}, got {w.device}")
