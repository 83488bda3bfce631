"""Spiking neuron layers for networks: IF, LIF and parametric LIF (PLIF).

Keyword names follow SpikingJelly; the defaults are the settings of the SEW ResNet paper.

The time axis is explicit. In multi-step mode (``step_mode="m"``) a node takes ``[T, N, ...]`` and starts at rest in
every call, unless ``keep_state=True``. In single-step mode (``step_mode="s"``) it takes one time-step ``[N, ...]`` and
keeps its membrane potential from call to call until ``reset()``.

>>> import torch, sewsnn
>>> spikes = sewsnn.neuron.LIFNode(tau=2.0)(torch.rand(4, 8, 16))  # [T, N, ...]
"""

import math
import numbers
import weakref

import torch
from torch import Tensor, nn

from sewsnn import checks, functional
from sewsnn.ops import neuron as native
from sewsnn.ops.load import check_backend
from sewsnn.surrogate import ATan

__all__ = ["BaseNode", "IFNode", "LIFNode", "ParametricLIFNode"]


def _number(name: str, value) -> float:
    checks.check_number(name, value)
    return value if type(value) in (int, float) or torch.compiler.is_compiling() else float(value)


def _tau(name: str, value) -> float:
    checks.check_tau(value, name)
    return _number(name, value)


def _flag(name: str, value) -> bool:
    if not isinstance(value, bool | numbers.Integral) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _one_of(*choices: str):
    def checked(name: str, value) -> str:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value

    return checked


#: attributes that record where a node's state came from; copies and pickles leave them out
MARKS = ("_left", "_reset_in", "_given_in")

#: settings that are checked at each assignment: an nn.Parameter in place of a number would silently never be trained
_SETTINGS = {
    "step_mode": _one_of("m", "s"),
    "backend": lambda name, value: check_backend(value),
    "tau_grad": _one_of("full", "frozen"),
    "detach_reset": _flag,
    "decay_input": _flag,
    "store_v_seq": _flag,
    "store_v": _flag,
    "v_threshold": _number,
    "v_reset": lambda name, value: None if value is None else _number(name, value),
    "tau": _tau,
}


class BaseNode(nn.Module):
    """Base class of :class:`IFNode`, :class:`LIFNode` and :class:`ParametricLIFNode`.

    Args:
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at rest (hard reset). Default 0.0. None: a spike subtracts
            v_threshold instead (soft reset), and the neuron rests at 0.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default None:
            ``ATan(2.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        step_mode: ``"m"`` (default) for input ``[T, N, ...]``, or ``"s"`` for one time-step ``[N, ...]`` per call.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.
        store_v_seq: keep the membrane potential of every time-step in ``v_seq``. Default False.
        keep_state: start each call from the ``v`` of the previous call, with its autograd graph. Default None: only in
            single-step mode.
        store_v: write the final membrane potential to ``v`` (one more tensor to write). Default True.
            ``keep_state=True`` needs it.

    Attributes:
        v: membrane potential ``[N, ...]`` after the last call, in float32 (float64 for float64 input). It is detached
            unless the node keeps its state. None at rest.
        v_seq: membrane potential ``[T, N, ...]`` of the last call if ``store_v_seq``, detached unless the node keeps
            its state; else None.

    Raises:
        TypeError: an argument has the wrong type; the message names it.
        ValueError: an argument has the wrong value; the message names it. A later assignment is checked as well.
        sewsnn.BackendError: ``backend`` is ``"cupy"``.
    """

    kind: int

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = True,
        step_mode: str = "m",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        keep_state: bool | None = None,
        store_v: bool = True,
    ):
        super().__init__()
        surrogate_function = ATan(2.0) if surrogate_function is None else surrogate_function
        checks.check_neuron(v_threshold, v_reset, surrogate_function)
        if keep_state and not store_v:
            raise ValueError("keep_state=True needs store_v=True")
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.surrogate_function = surrogate_function
        self.detach_reset = detach_reset
        self.step_mode = step_mode
        self.backend = backend
        self.store_v_seq = store_v_seq
        self.keep_state = keep_state
        self.store_v = store_v
        self.v: Tensor | None = None
        self.v_seq: Tensor | None = None

    def __setattr__(self, name: str, value) -> None:
        if name in _SETTINGS:
            value = _SETTINGS[name](name, value)
        super().__setattr__(name, value)
        if name == "v" and not torch.compiler.is_compiling():
            self.__dict__["_given_in"] = checks.backward_number()

    @property
    def keeps_state(self) -> bool:
        """Returns whether the next call starts from the membrane potential at which this call ends."""
        return self.step_mode == "s" if self.keep_state is None else self.keep_state

    def forward(self, x: Tensor) -> Tensor:
        """Runs the neurons over the input and returns their spikes.

        Args:
            x: input current ``[T, N, ...]``, or ``[N, ...]`` in single-step mode; float32, float16, bfloat16 or
                float64.

        Returns:
            Spikes (0 or 1), in the shape and dtype of x.

        Raises:
            TypeError: x, or the state that the node keeps, has the wrong type or dtype.
            ValueError: x has the wrong shape, or the state that the node keeps does not fit its shape or device: call
                ``reset()`` first.
            sewsnn.BackendError: the backend you asked for cannot run here.
            RuntimeError: the node keeps its state and runs inside a ``torch.func`` transform, or a second time inside
                backward (activation checkpointing) without a reset.
        """
        keep = self.keeps_state
        wanted = keep or (self.store_v and not torch.compiler.is_exporting())
        if self.store_v_seq and not torch.compiler.is_exporting():
            v_mode = native.V_SEQUENCE
        else:
            v_mode = native.V_FINAL if wanted else native.V_NONE
        single = self.step_mode == "s"
        s_seq, v = functional.multistep(
            x.unsqueeze(0) if single else x,
            self._kept_v() if keep else None,
            v_mode=v_mode,
            **self.settings(),
        )
        if v is not None and (keep or torch.compiler.is_compiling() or checks.outlives_its_code(v)):
            if not keep:
                v = v.detach()
            self.v = v[-1] if v_mode == native.V_SEQUENCE else v
            if v_mode == native.V_SEQUENCE or self.v_seq is not None:
                self.v_seq = v if v_mode == native.V_SEQUENCE else None
            if keep and not torch.compiler.is_compiling():
                self._remember(self.v)
        return s_seq.squeeze(0) if single else s_seq

    # ---- a state that is kept, and activation checkpointing
    #
    # torch.utils.checkpoint runs each forward a second time, inside backward. A node that keeps its state would then
    # start from the potential at which the first run ended, and its gradients would be wrong. Inside backward a node
    # therefore accepts three starting points: rest, after a reset() inside this backward; a v that was assigned inside
    # it; the end of an earlier call inside it. In every other case it raises.

    def _kept_v(self) -> Tensor | None:
        """The state to start from; None: at rest."""
        v = self.v
        if torch.compiler.is_compiling():
            return v
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "a node that keeps its state cannot run inside a torch.func transform, because tensors made there are "
                "invalid after it: use keep_state=False, or call sewsnn.functional, which takes and returns v"
            )
        self._check_repetition(v)
        if v is not None and v.is_inference() and not torch.is_inference_mode_enabled():
            v = v.clone()  # backward may have to keep it
        return v

    def _check_repetition(self, v) -> None:
        """Raises RuntimeError where backward repeats a forward from another state than the forward started from."""
        number = checks.backward_number()
        if number == -1:
            return
        if not isinstance(v, Tensor):  # at rest
            right = self.__dict__.get("_reset_in") == number
        elif self._was_left(v):
            right = self.__dict__["_left"][0] == number
        else:  # assigned by the user, who has to assign it again inside backward
            right = self.__dict__.get("_given_in") == number
        if not right:
            raise RuntimeError(
                f"{type(self).__name__} keeps its state and runs a second time inside backward (activation "
                "checkpointing, torch.utils.checkpoint): it would start from another potential than the forward did, "
                "and gradients would be wrong. Call reset() of the node, call reset_net(net) or assign v at the "
                "beginning of the checkpointed function"
            )

    def _remember(self, v) -> None:
        """Records in which backward pass (-1: in none) a call left the state v; it holds v weakly."""
        self.__dict__["_left"] = (checks.backward_number(), weakref.ref(v) if isinstance(v, Tensor) else None)

    def _was_left(self, v: Tensor) -> bool:
        """Returns whether a call left this state; False if the user assigned it."""
        left = self.__dict__.get("_left", (None, None))[1]
        return left is not None and left() is v

    def _follow(self, old, new) -> None:
        """Keeps the record of :meth:`_remember` when the state becomes another tensor with the same values."""
        if isinstance(old, Tensor) and self._was_left(old):
            self.__dict__["_left"] = (self.__dict__["_left"][0], weakref.ref(new))

    def _note_reset(self) -> None:
        """Records in which backward pass (-1: in none) the node was reset."""
        self.__dict__.pop("_left", None)
        self.__dict__["_reset_in"] = checks.backward_number()

    def settings(self) -> dict:
        """The node's settings as the keyword arguments of :func:`sewsnn.functional.multistep`.

        Returns:
            A dictionary with ``kind``, ``v_threshold``, ``v_reset``, ``surrogate_function``, ``detach_reset``,
            ``backend`` and the entries of :meth:`charge_arguments`.
        """
        return {
            "kind": self.kind,
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "surrogate_function": self.surrogate_function,
            "detach_reset": self.detach_reset,
            "backend": self.backend,
            **self.charge_arguments(),
        }

    def can_be_fused(self) -> bool:
        """Returns whether a fused op may stand for the next call of this node.

        Returns:
            True if :meth:`settings` describe the next call completely: multi-step mode, no kept state, no
            ``store_v_seq``, and the class does not override ``forward`` or ``__call__``.
        """
        known = type(self).forward is _FORWARD and type(self).__call__ is nn.Module.__call__
        return known and self.step_mode == "m" and not self.keeps_state and not self.store_v_seq

    def set_final_v(self, v: Tensor, graph_lost: bool) -> None:
        """Stores the final membrane potential that a fused op computed in place of this node.

        Args:
            v: membrane potential ``[N, ...]`` after the last time-step, without an autograd graph.
            graph_lost: True if v would have had a graph outside the fused op. These nodes ignore it; nodes converted
                from SpikingJelly raise when backward reaches such a v.
        """
        if torch.compiler.is_compiling():
            self.v = v
            self.v_seq = None
        elif checks.outlives_its_code(v):
            self._keep_final_v(v)

    def _keep_final_v(self, v: Tensor) -> None:
        """Assigns v, and None to v_seq, without the cost of ``Module.__setattr__``."""
        state = self.__dict__
        if "v" in state and "v_seq" in state:
            state["v"], state["v_seq"], state["_given_in"] = v, None, checks.backward_number()
        else:  # for example a buffer
            self.v = v
            self.v_seq = None

    def charge_arguments(self) -> dict:
        """The keyword arguments that a subclass adds to :meth:`settings`.

        Returns:
            An empty dictionary for IF, ``tau`` and ``decay_input`` for LIF, ``w`` and ``decay_input`` for PLIF.
        """
        return {}

    def reset(self) -> None:
        """Puts the neurons back to rest: ``v`` and ``v_seq`` become None."""
        self.v = None
        self.v_seq = None
        self._note_reset()

    def detach(self) -> None:
        """Detaches the kept state from the graph of earlier calls (truncated back-propagation through time)."""
        old = self.v
        self.v = None if old is None else old.detach()
        self.v_seq = None if self.v_seq is None else self.v_seq.detach()
        self._follow(old, self.v)

    def _apply(self, fn, recurse=True):
        # Convert the state first: if that fails, the parameters are still unchanged.
        old, states = self.v, [None if state is None else fn(state) for state in (self.v, self.v_seq)]
        super()._apply(fn, recurse)
        self.v, self.v_seq = states
        self._follow(old, self.v)
        return self

    def __getstate__(self):
        # Copies and pickles carry the state's values; a graph can be neither copied nor pickled.
        state = self.__dict__.copy()
        for name in ("v", "v_seq"):
            state[name] = None if state[name] is None else state[name].detach()
        for name in MARKS:
            state.pop(name, None)
        return state

    def extra_repr(self) -> str:
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, surrogate_function={self.surrogate_function}, "
            f"detach_reset={self.detach_reset}, step_mode={self.step_mode!r}, backend={self.backend!r}"
        )


_FORWARD = BaseNode.forward  # the forward that a fused op computes, even if someone replaces the method later


class IFNode(BaseNode):
    """Integrate-and-fire neuron.

        h = v + x,  s = 1 if h >= v_threshold else 0,  then the reset: v = v_reset where s = 1

    Args:
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at rest (hard reset). Default 0.0. None: soft reset,
            v = h - s v_threshold, and the neuron rests at 0.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default None:
            ``ATan(2.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        step_mode: ``"m"`` (default) for input ``[T, N, ...]``, or ``"s"`` for one time-step ``[N, ...]`` per call.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.
        store_v_seq: keep the membrane potential of every time-step in ``v_seq``. Default False.
        keep_state: start each call from the ``v`` of the previous call, with its autograd graph. Default None: only in
            single-step mode.
        store_v: write the final membrane potential to ``v``. Default True. ``keep_state=True`` needs it.

    A call returns spikes in the shape and dtype of the input; ``v`` and ``v_seq`` hold the membrane potential in
    float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: ``backend`` is ``"cupy"``.

    Example:
        >>> node = IFNode(v_threshold=1.0)
        >>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...] -> 0 or 1, [T, N, ...]

    Source: main paper, section 3.1; supplement, A.1.
    """

    kind = native.IF


class LIFNode(BaseNode):
    """Leaky integrate-and-fire neuron.

        h = v + (x - (v - v_rest)) / tau      with decay_input
        h = v - (v - v_rest) / tau + x        without

    v_rest is v_reset, or 0 with soft reset. The neuron then fires, s = 1 if h >= v_threshold else 0, and resets v.

    Args:
        tau: membrane time constant in time-steps, at least 1. Default 2.0.
        decay_input: divide the input by tau as well. Default True.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at rest (hard reset). Default 0.0. None: soft reset,
            v = h - s v_threshold, and the neuron rests at 0.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default None:
            ``ATan(2.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        step_mode: ``"m"`` (default) for input ``[T, N, ...]``, or ``"s"`` for one time-step ``[N, ...]`` per call.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.
        store_v_seq: keep the membrane potential of every time-step in ``v_seq``. Default False.
        keep_state: start each call from the ``v`` of the previous call, with its autograd graph. Default None: only in
            single-step mode.
        store_v: write the final membrane potential to ``v``. Default True. ``keep_state=True`` needs it.

    A call returns spikes in the shape and dtype of the input; ``v`` and ``v_seq`` hold the membrane potential in
    float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: ``backend`` is ``"cupy"``.

    Example:
        >>> node = LIFNode(tau=2.0)
        >>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...] -> 0 or 1, [T, N, ...]

    Source: supplement, A.1.
    """

    kind = native.LIF

    def __init__(self, tau: float = 2.0, decay_input: bool = True, *args, **kwargs):
        super().__init__(*args, **kwargs)
        checks.check_tau(tau)
        self.tau = tau
        self.decay_input = decay_input

    def charge_arguments(self):
        return {"tau": self.tau, "decay_input": self.decay_input}

    def extra_repr(self):
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class ParametricLIFNode(BaseNode):
    """Parametric LIF (PLIF) neuron: a LIF neuron that learns its time constant, ``1 / tau = sigmoid(w)``.

        h = v + (x - (v - v_rest)) sigmoid(w)      with decay_input
        h = v - (v - v_rest) sigmoid(w) + x        without

    v_rest is v_reset, or 0 with soft reset. The neuron then fires, s = 1 if h >= v_threshold else 0, and resets v.

    Args:
        init_tau: initial membrane time constant in time-steps, above 1. Default 2.0. It sets w to
            ``-log(init_tau - 1)``.
        decay_input: multiply the input by 1 / tau as well. Default True.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at rest (hard reset). Default 0.0. None: soft reset,
            v = h - s v_threshold, and the neuron rests at 0.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default None:
            ``ATan(2.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        step_mode: ``"m"`` (default) for input ``[T, N, ...]``, or ``"s"`` for one time-step ``[N, ...]`` per call.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.
        store_v_seq: keep the membrane potential of every time-step in ``v_seq``. Default False.
        keep_state: start each call from the ``v`` of the previous call, with its autograd graph. Default None: only in
            single-step mode.
        store_v: write the final membrane potential to ``v``. Default True. ``keep_state=True`` needs it.
        tau_grad: ``"full"`` (default) trains w; ``"frozen"`` gives w no gradient. The authors trained their published
            PLIF networks with an almost frozen tau, because their kernel kept only one thread block's share of the
            gradient.

    Attributes:
        w: the scalar parameter, shape ``[]``.

    A call returns spikes in the shape and dtype of the input; ``v`` and ``v_seq`` hold the membrane potential in
    float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: ``backend`` is ``"cupy"``.

    Example:
        >>> node = ParametricLIFNode(init_tau=2.0)
        >>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...] -> 0 or 1, [T, N, ...]

    Source: supplement, A.1; Fang et al., ICCV 2021 (PLIF).
    """

    kind = native.PLIF

    def __init__(self, init_tau: float = 2.0, decay_input: bool = True, *args, tau_grad: str = "full", **kwargs):
        super().__init__(*args, **kwargs)
        checks.check_tau(init_tau, "init_tau")
        if init_tau == 1:
            raise ValueError("init_tau must be above 1: sigmoid(w) = 1 needs an infinite w")
        self.decay_input = decay_input
        self.tau_grad = tau_grad
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1)))

    @property
    def tau(self) -> float:
        """The current membrane time constant in time-steps, ``1 / sigmoid(w)``."""
        return 1 / float(self.w.detach().sigmoid())

    def charge_arguments(self):
        w = self.w if self.tau_grad == "full" else self.w.detach()
        return {"w": w, "decay_input": self.decay_input}

    def extra_repr(self):
        return f"tau={self.tau:.4g}, decay_input={self.decay_input}, {super().extra_repr()}"
