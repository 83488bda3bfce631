"""Multi-step neurons as functions: ``[T, ...]`` in, spikes and membrane potential out, all time-steps in one launch.

A neuron starts from rest (``v_reset``, or 0 with soft reset) unless ``v`` is given. ``v`` and ``v_seq`` come back in
float32 (float64 for float64 input): the state is never rounded to half precision between time-steps.
"""

import math
import numbers

import torch
from torch import Tensor, nn

from sewsnn.ops import neuron as native
from sewsnn.ops import reference
from sewsnn.ops.load import resolve_backend
from sewsnn.surrogate import ATan

__all__ = ["if_multistep", "lif_multistep", "plif_multistep", "reset_net"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ATAN = ATan(2.0)


def if_multistep(
    x_seq: Tensor,
    v: Tensor | None = None,
    *,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    surrogate_function=_ATAN,
    detach_reset: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Integrate-and-fire neuron over all time-steps: ``h = v + x``, ``s = [h >= v_threshold]``, then reset.

    Args:
        x_seq: ``[T, ...]``, float32, float16, bfloat16 or float64; T >= 1. Any dense order of one time-step
            (channels_last for instance) and a stride of 0 over T are read without a copy.
        v: ``[...]`` initial membrane potential, in the dtype of x_seq or of the state. None: at rest.
        v_threshold: potential from which the neuron fires (equality fires).
        v_reset: potential after a spike (hard reset); None subtracts ``v_threshold`` instead (soft reset).
        surrogate_function: derivative of the spike in backward, see :mod:`sewsnn.surrogate`.
        detach_reset: the spike inside the reset is a constant in backward.
        store_v_seq: return the potential of every time-step instead of the last.
        backend: ``"native"`` (compiled), ``"torch"`` (reference), or ``"auto"``: native where it can run.

    Returns:
        ``(s_seq, v)`` or, with ``store_v_seq``, ``(s_seq, v_seq)``: ``[T, ...]`` spikes in the dtype of x_seq, and the
        potential after the reset, ``[...]`` or ``[T, ...]``, in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: the backend asked for cannot run here.

    Source: main paper, section 3.1; supplement, A.1.
    """
    check_neuron(v_threshold, v_reset, surrogate_function)
    return multistep(
        x_seq,
        v,
        kind=native.IF,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate_function=surrogate_function,
        detach_reset=detach_reset,
        v_mode=native.V_SEQUENCE if store_v_seq else native.V_FINAL,
        backend=backend,
    )


def lif_multistep(
    x_seq: Tensor,
    v: Tensor | None = None,
    *,
    tau: float = 2.0,
    decay_input: bool = True,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    surrogate_function=_ATAN,
    detach_reset: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neuron over all time-steps.

    ``h = v + (x - (v - v_reset)) / tau`` with ``decay_input``, else ``h = v - (v - v_reset) / tau + x``.

    Args:
        tau: membrane time constant, in time-steps, at least 1.
        decay_input: the input is divided by tau as well.

    All else as in :func:`if_multistep`. Source: supplement, A.1.
    """
    check_neuron(v_threshold, v_reset, surrogate_function)
    check_tau(tau)
    return multistep(
        x_seq,
        v,
        kind=native.LIF,
        tau=tau,
        decay_input=decay_input,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate_function=surrogate_function,
        detach_reset=detach_reset,
        v_mode=native.V_SEQUENCE if store_v_seq else native.V_FINAL,
        backend=backend,
    )


def plif_multistep(
    x_seq: Tensor,
    w: Tensor,
    v: Tensor | None = None,
    *,
    decay_input: bool = True,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    surrogate_function=_ATAN,
    detach_reset: bool = True,
    store_v_seq: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Parametric LIF neuron over all time-steps: LIF with ``1 / tau = sigmoid(w)``, w learnt.

    Args:
        w: one number, a floating-point tensor on the device of x_seq. Its gradient is summed over all elements and
            time-steps in a fixed order: the same number every time.

    All else as in :func:`lif_multistep`. Source: supplement, A.1; Fang et al., ICCV 2021 (PLIF).
    """
    check_neuron(v_threshold, v_reset, surrogate_function)
    return multistep(
        x_seq,
        v,
        kind=native.PLIF,
        w=w,
        decay_input=decay_input,
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate_function=surrogate_function,
        detach_reset=detach_reset,
        v_mode=native.V_SEQUENCE if store_v_seq else native.V_FINAL,
        backend=backend,
    )


def reset_net(module: nn.Module) -> None:
    """Puts every neuron in ``module`` back to rest (calls ``reset()`` of every submodule that has one)."""
    for child in module.modules():
        reset = getattr(child, "reset", None)
        if callable(reset):
            reset()


def multistep(
    x_seq: Tensor,
    v: Tensor | None,
    *,
    kind: int,
    tau: float = 2.0,
    w: Tensor | None = None,
    decay_input: bool = True,
    v_threshold: float,
    v_reset: float | None,
    surrogate_function,
    detach_reset: bool,
    v_mode: int,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """The one way into every neuron; ``v_mode`` as in :mod:`sewsnn.ops.neuron`. Checks the tensors, not the numbers."""
    check_input(x_seq)
    check_v(v, x_seq)
    state = reference.state_dtype(x_seq.dtype)
    leak = None
    if kind == native.PLIF:
        check_w(w, x_seq)
        leak = w.to(state).reshape(()).sigmoid()
    if resolve_backend(backend, x_seq.device.type, surrogate_function) == "native":
        return native.multistep(
            x_seq,
            None if v is None else v.to(state),
            leak,
            kind=kind,
            tau=float(tau),
            decay_input=decay_input,
            v_threshold=float(v_threshold),
            v_reset=None if v_reset is None else float(v_reset),
            surrogate=surrogate_function,
            detach_reset=detach_reset,
            v_mode=v_mode,
        )
    s_seq, v_seq = reference.multistep(
        x_seq,
        v,
        fire=surrogate_function,
        tau=tau if kind == native.LIF else None,
        leak=leak,
        decay_input=decay_input,
        v_threshold=v_threshold,
        v_reset=v_reset,
        detach_reset=detach_reset,
    )
    if v_mode == native.V_SEQUENCE:
        return s_seq, v_seq
    return s_seq, v_seq[-1] if v_mode == native.V_FINAL else None


def _check_number(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_neuron(v_threshold, v_reset, surrogate_function) -> None:
    """The arguments all neurons share."""
    _check_number("v_threshold", v_threshold)
    if v_reset is not None:
        _check_number("v_reset", v_reset)
    if not callable(surrogate_function):
        raise TypeError(
            f"surrogate_function must be one of sewsnn.surrogate, or callable on h - v_threshold, "
            f"got {type(surrogate_function).__name__}"
        )


def check_tau(tau, name: str = "tau") -> None:
    """tau of LIF."""
    _check_number(name, tau)
    if tau < 1:
        raise ValueError(f"{name} must be at least 1, got {tau}")


def check_input(x_seq) -> None:
    """x_seq of every neuron."""
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"x_seq must be a tensor, got {type(x_seq).__name__}")
    if x_seq.dtype not in _DTYPES:
        raise TypeError(f"x_seq must be float32, float16, bfloat16 or float64, got {x_seq.dtype}")
    if x_seq.layout != torch.strided:
        raise TypeError(f"x_seq must be a dense (strided) tensor, got {x_seq.layout}")
    if x_seq.dim() == 0:
        raise ValueError("x_seq must be [T, ...], got a tensor without dimensions")
    if x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must have at least one time-step, got T = 0 (shape {list(x_seq.shape)})")


def check_v(v, x_seq: Tensor) -> None:
    """The initial potential."""
    if v is None:
        return
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a tensor or None, got {type(v).__name__}")
    if v.shape != x_seq.shape[1:]:
        raise ValueError(
            f"v must have the shape of one time-step of x_seq, {list(x_seq.shape[1:])}, got {list(v.shape)}; "
            "a node that keeps its state needs reset() before another shape"
        )
    state = reference.state_dtype(x_seq.dtype)
    if v.dtype not in (x_seq.dtype, state):
        raise TypeError(f"v must be {state} (or the dtype of x_seq, {x_seq.dtype}), got {v.dtype}")
    if v.device != x_seq.device:
        raise ValueError(f"v must be on the device of x_seq, {x_seq.device}, got {v.device}")


def check_w(w, x_seq: Tensor) -> None:
    """The parameter of PLIF."""
    if not isinstance(w, Tensor):
        raise TypeError(f"w must be a tensor, got {type(w).__name__}")
    if w.numel() != 1 or not w.dtype.is_floating_point:
        raise ValueError(f"w must be one floating-point number, got shape {list(w.shape)}, {w.dtype}")
    if w.device != x_seq.device:
        raise ValueError(f"w must be on the device of x_seq, {x_seq.device}, got {w.device}")
