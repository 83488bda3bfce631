"""Multi-step neurons as functions: ``[T, ...]`` in, spikes and membrane potential out, all time-steps in one launch.

A neuron starts from rest (``v_reset``, or 0 with soft reset) unless ``v`` is given. ``v`` and ``v_seq`` come back in
float32 (float64 for float64 input): the state is never rounded to half precision between time-steps.
"""

import torch
from torch import Tensor, nn

from sewsnn import checks
from sewsnn.ops import neuron as native
from sewsnn.ops import reference
from sewsnn.ops.load import resolve_backend
from sewsnn.surrogate import ATan

__all__ = ["if_multistep", "lif_multistep", "plif_multistep", "reset_net", "set_step_mode"]

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
    checks.check_neuron(v_threshold, v_reset, surrogate_function)
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
    checks.check_neuron(v_threshold, v_reset, surrogate_function)
    checks.check_tau(tau)
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
    checks.check_neuron(v_threshold, v_reset, surrogate_function)
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
        if callable(reset) and not isinstance(reset, nn.Module):  # a layer may be called so
            reset()


def set_step_mode(module: nn.Module, step_mode: str) -> None:
    """Sets ``step_mode`` of ``module`` and of every submodule that has one: ``"m"``, all time-steps in one call, or
    ``"s"``, one a call, with the state kept until :func:`reset_net`.

    Raises:
        ValueError: ``step_mode`` is neither.
    """
    if step_mode not in ("m", "s"):
        raise ValueError(f"step_mode must be 'm' or 's', got {step_mode!r}")
    for child in module.modules():
        if hasattr(child, "step_mode"):
            child.step_mode = step_mode


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
    checks.check_input(x_seq)
    checks.check_v(v, x_seq)
    state = reference.state_dtype(x_seq.dtype)
    if torch.compiler.is_compiling():
        tau, v_threshold, v_reset = checks.constants(tau, v_threshold, v_reset)
    leak = None
    if kind == native.PLIF:
        checks.check_w(w, x_seq)
        leak = w.to(state).reshape(()).sigmoid()
    if resolve_backend(backend, x_seq.device, surrogate_function) == "native":
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
    checks.check_room(x_seq, state)
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
    # A copy: a view would keep the potentials of all time-steps, and cannot be detached in place.
    return s_seq, v_seq[-1].clone() if v_mode == native.V_FINAL else None
