"""Multi-step spiking neurons as functions: one kernel launch computes all time-steps.

Each function takes input ``[T, ...]`` and returns spikes and membrane potential. A neuron starts at rest (``v_reset``,
or 0 with soft reset) unless you pass ``v``. The returned ``v`` or ``v_seq`` is float32 (float64 for float64 input): the
state is never rounded to half precision between time-steps.

>>> import torch, sewsnn
>>> spikes, v = sewsnn.functional.lif_multistep(torch.rand(4, 8, 16), tau=2.0)
"""

from torch import Tensor, nn

from sewsnn.ops import checks, reference
from sewsnn.ops import neuron as native
from sewsnn.ops.load import resolve_backend
from sewsnn.ops.spec import NeuronSpec
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
    T: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Integrate-and-fire neuron over all T time-steps.

        h[t] = v[t-1] + x[t],  s[t] = 1 if h[t] >= v_threshold else 0
        v[t] = (1 - s[t]) h[t] + s[t] v_reset      hard reset
        v[t] = h[t] - s[t] v_threshold             soft reset (v_reset is None)

    Args:
        x_seq: input current ``[T, ...]`` with T >= 1, in float32, float16, bfloat16 or float64. The kernels read any
            dense order of one time-step (channels_last, for example) and a stride of 0 over T without a copy.
        v: initial membrane potential ``[...]``, in the dtype of x_seq or of the state. Default None: at rest.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at rest (hard reset). Default 0.0. None: soft reset.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default ``ATan(2.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        store_v_seq: return the membrane potential of every time-step instead of the last one. Default False.
        T: number of time-steps in the first dimension of a merged batch ``[T * N, ...]``, in which all samples of the
            first time-step come first. ``s_seq`` and ``v_seq`` are then merged as well. Nothing is copied. Default
            None: x_seq has a time axis.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.

    Returns:
        ``(s_seq, v)``, or ``(s_seq, v_seq)`` with ``store_v_seq``. ``s_seq [T, ...]`` holds the spikes in the dtype of
        x_seq. ``v [...]`` or ``v_seq [T, ...]`` is the membrane potential after the reset, in float32 (float64 for
        float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: the backend you asked for cannot run here.

    Example:
        >>> s_seq, v = if_multistep(torch.rand(4, 8, 16))
        >>> s_seq, v_seq = if_multistep(torch.rand(4, 8, 16), v, store_v_seq=True)

    Source: main paper, section 3.1; supplement, A.1.
    """
    spec = NeuronSpec(
        "IF",
        surrogate_function,
        v_threshold=v_threshold,
        v_reset=v_reset,
        detach_reset=detach_reset,
    )
    v_mode = native.V_SEQUENCE if store_v_seq else native.V_FINAL
    return multistep(x_seq, v, spec, None, v_mode=v_mode, backend=backend, T=T)


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
    T: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neuron over all T time-steps.

        h[t] = v[t-1] + (x[t] - (v[t-1] - v_rest)) / tau      with decay_input
        h[t] = v[t-1] - (v[t-1] - v_rest) / tau + x[t]        without
        s[t] = 1 if h[t] >= v_threshold else 0
        v[t] = (1 - s[t]) h[t] + s[t] v_reset                 hard reset, v_rest = v_reset
        v[t] = h[t] - s[t] v_threshold                        soft reset (v_reset is None), v_rest = 0

    Args:
        x_seq: input current ``[T, ...]`` with T >= 1, in float32, float16, bfloat16 or float64. The kernels read any
            dense order of one time-step (channels_last, for example) and a stride of 0 over T without a copy.
        v: initial membrane potential ``[...]``, in the dtype of x_seq or of the state. Default None: at rest.
        tau: membrane time constant in time-steps, at least 1. Default 2.0.
        decay_input: divide the input by tau as well. Default True.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at rest (hard reset). Default 0.0. None: soft reset.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default ``ATan(2.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        store_v_seq: return the membrane potential of every time-step instead of the last one. Default False.
        T: number of time-steps in the first dimension of a merged batch ``[T * N, ...]``, in which all samples of the
            first time-step come first. ``s_seq`` and ``v_seq`` are then merged as well. Nothing is copied. Default
            None: x_seq has a time axis.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.

    Returns:
        ``(s_seq, v)``, or ``(s_seq, v_seq)`` with ``store_v_seq``. ``s_seq [T, ...]`` holds the spikes in the dtype of
        x_seq. ``v [...]`` or ``v_seq [T, ...]`` is the membrane potential after the reset, in float32 (float64 for
        float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: the backend you asked for cannot run here.

    Example:
        >>> s_seq, v = lif_multistep(torch.rand(4, 8, 16), tau=2.0)
        >>> s_seq, v_seq = lif_multistep(torch.rand(4, 8, 16), v, store_v_seq=True)

    Source: supplement, A.1.
    """
    spec = NeuronSpec(
        "LIF",
        surrogate_function,
        tau=tau,
        decay_input=decay_input,
        v_threshold=v_threshold,
        v_reset=v_reset,
        detach_reset=detach_reset,
    )
    v_mode = native.V_SEQUENCE if store_v_seq else native.V_FINAL
    return multistep(x_seq, v, spec, None, v_mode=v_mode, backend=backend, T=T)


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
    T: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Parametric LIF neuron over all T time-steps: a LIF neuron with a learnt leak, ``1 / tau = sigmoid(w)``.

        h[t] = v[t-1] + (x[t] - (v[t-1] - v_rest)) sigmoid(w)      with decay_input
        h[t] = v[t-1] - (v[t-1] - v_rest) sigmoid(w) + x[t]        without
        s[t] = 1 if h[t] >= v_threshold else 0
        v[t] = (1 - s[t]) h[t] + s[t] v_reset                      hard reset, v_rest = v_reset
        v[t] = h[t] - s[t] v_threshold                             soft reset (v_reset is None), v_rest = 0

    Args:
        x_seq: input current ``[T, ...]`` with T >= 1, in float32, float16, bfloat16 or float64. The kernels read any
            dense order of one time-step (channels_last, for example) and a stride of 0 over T without a copy.
        w: floating-point tensor with one element, on the device of x_seq. Its gradient is summed over all elements and
            time-steps in a fixed order, so it has the same bits in every run.
        v: initial membrane potential ``[...]``, in the dtype of x_seq or of the state. Default None: at rest.
        decay_input: multiply the input by 1 / tau as well. Default True.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at rest (hard reset). Default 0.0. None: soft reset.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default ``ATan(2.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        store_v_seq: return the membrane potential of every time-step instead of the last one. Default False.
        T: number of time-steps in the first dimension of a merged batch ``[T * N, ...]``, in which all samples of the
            first time-step come first. ``s_seq`` and ``v_seq`` are then merged as well. Nothing is copied. Default
            None: x_seq has a time axis.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.

    Returns:
        ``(s_seq, v)``, or ``(s_seq, v_seq)`` with ``store_v_seq``. ``s_seq [T, ...]`` holds the spikes in the dtype of
        x_seq. ``v [...]`` or ``v_seq [T, ...]`` is the membrane potential after the reset, in float32 (float64 for
        float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: the backend you asked for cannot run here.

    Example:
        >>> w = torch.zeros((), requires_grad=True)  # tau = 2
        >>> s_seq, v = plif_multistep(torch.rand(4, 8, 16), w)

    Source: supplement, A.1; Fang et al., ICCV 2021 (PLIF).
    """
    spec = NeuronSpec(
        "PLIF",
        surrogate_function,
        decay_input=decay_input,
        v_threshold=v_threshold,
        v_reset=v_reset,
        detach_reset=detach_reset,
    )
    checks.check_input(x_seq)
    checks.check_w(w, x_seq)
    leak = w.to(reference.state_dtype(x_seq.dtype)).reshape(()).sigmoid()
    v_mode = native.V_SEQUENCE if store_v_seq else native.V_FINAL
    return multistep(x_seq, v, spec, leak, v_mode=v_mode, backend=backend, T=T)


def reset_net(module: nn.Module) -> None:
    """Puts every neuron in ``module`` back to rest: calls ``reset()`` of each submodule that has this method.

    Args:
        module: a network or a single node.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> reset_net(net)
    """
    for child in module.modules():
        reset = getattr(child, "reset", None)
        if callable(reset) and not isinstance(reset, nn.Module):  # skip a submodule that is named "reset"
            reset()


def set_step_mode(module: nn.Module, step_mode: str) -> None:
    """Sets ``step_mode`` of ``module`` and of each submodule that has this attribute.

    Args:
        module: a network or a single node.
        step_mode: ``"m"``: one call computes all T time-steps of ``[T, N, ...]``. ``"s"``: one call computes one
            time-step ``[N, ...]``, and the neurons keep their state until :func:`reset_net`.

    Raises:
        ValueError: ``step_mode`` is neither ``"m"`` nor ``"s"``.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> set_step_mode(net, "s")
    """
    if step_mode not in ("m", "s"):
        raise ValueError(f"step_mode must be 'm' or 's', got {step_mode!r}")
    for child in module.modules():
        if hasattr(child, "step_mode"):
            child.step_mode = step_mode


def multistep(
    x_seq: Tensor,
    state: Tensor | None,
    spec: NeuronSpec,
    learnt: Tensor | None = None,
    *,
    v_mode: int,
    backend: str,
    T: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Runs any neuron; the nodes and the three functions above all call it.

    It checks the tensors; ``spec`` has checked the numbers. A neuron with k > 1 states has them in the first dimension
    of one tensor.

    Args:
        x_seq: input current ``[T, ...]``, float32, float16, bfloat16 or float64.
        state: initial state ``[...]`` or ``[k, ...]``; None: at rest.
        spec: the neuron.
        learnt: its learnt parameters in the state's dtype: one number for PLIF, ``[rows, 1]`` or ``[rows, C]`` for
            LearntLIF (then x_seq is ``[T, N, C, ...]``). Default None.
        v_mode: which state to return: ``V_NONE``, ``V_FINAL`` or ``V_SEQUENCE`` of :mod:`sewsnn.ops.neuron`.
        backend: ``"auto"``, ``"native"`` or ``"torch"``; ``"cupy"`` always raises in this version.
        T: number of time-steps of a merged batch: x_seq, s_seq and the states of all time-steps are ``[T * N, ...]``.
            Default None.

    Returns:
        ``(s_seq, state)``: spikes ``[T, ...]`` in the dtype of x_seq, and None, the last state (``[...]`` or
        ``[k, ...]``) or all (``[T, ...]`` or ``[k, T, ...]``), in float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: a tensor or ``backend`` is wrong; the message names it.
        sewsnn.BackendError: the backend you asked for cannot run here.
        RuntimeError: the torch backend has too little memory for the states of all time-steps.
    """
    model = reference.NEURONS[spec.kind]
    states = len(model.states)
    if T is not None:
        x_seq = checks.split("x_seq", x_seq, T)
        s_seq, state = multistep(x_seq, state, spec, learnt, v_mode=v_mode, backend=backend)
        if v_mode == native.V_SEQUENCE:
            state = state.flatten(0, 1) if states == 1 else state.flatten(1, 2)
        return s_seq.flatten(0, 1), state
    checks.check_input(x_seq)
    checks.check_v(state, x_seq, ", ".join(model.states), states)
    if learnt is not None and learnt.device != x_seq.device:
        raise ValueError(
            f"{', '.join(model.learnt)} must be on the device of x_seq, {x_seq.device}, got {learnt.device}"
        )
    if resolve_backend(backend, x_seq.device, spec.surrogate, spec.missing) == "native":
        if state is not None:
            state = state.to(reference.state_dtype(x_seq.dtype))
        return native.multistep(x_seq, state, learnt, spec, v_mode)
    checks.check_room(x_seq, reference.state_dtype(x_seq.dtype), states)
    s_seq, state_seq = reference.multistep(x_seq, spec, state, learnt)
    if v_mode == native.V_SEQUENCE:
        return s_seq, state_seq
    # A copy: a view would keep the states of all time-steps in memory, and torch cannot detach a view in place.
    last = state_seq[-1] if states == 1 else state_seq[:, -1]
    return s_seq, last.clone() if v_mode == native.V_FINAL else None
