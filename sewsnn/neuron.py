"""Neurons as modules: IF, LIF and parametric LIF. Keyword names are those of SpikingJelly, defaults those of the paper.

Time is explicit: in multi-step mode (``step_mode="m"``) a node takes ``[T, N, ...]`` and starts from rest at every
call, unless ``keep_state=True``. In single-step mode (``"s"``) it takes ``[N, ...]`` and carries its potential on until
``reset()``.
"""

import math
import numbers
import weakref

import torch
from torch import Tensor, nn

from sewsnn import checks, functional
from sewsnn.ops import neuron as native
from sewsnn.ops.load import BACKENDS
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


#: what says where a state is from; not part of a copy
MARKS = ("_left", "_reset_in", "_given_in")

#: settings that are checked at each assignment. A Parameter in place of a number would never be trained
_SETTINGS = {
    "step_mode": _one_of("m", "s"),
    "backend": _one_of(*BACKENDS),
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
    """What all nodes share.

    Args:
        v_threshold: the neuron fires where h >= v_threshold.
        v_reset: potential after a spike (hard reset); None subtracts v_threshold instead (soft reset).
        surrogate_function: derivative of the spike in backward (:mod:`sewsnn.surrogate`); None: ``ATan(2.0)``.
        detach_reset: the spike inside the reset is a constant in backward.
        step_mode: ``"m"``, input ``[T, N, ...]``, or ``"s"``, input ``[N, ...]``.
        backend: ``"auto"``, ``"native"`` or ``"torch"``.
        store_v_seq: keep the potential of every time-step in ``v_seq``.
        keep_state: start each call from the ``v`` of the last, with its graph. None: in single-step mode only.
        store_v: leave the final potential in ``v`` (costs writing it). Needed to keep state.

    Attributes:
        v: final membrane potential ``[N, ...]`` of the last call, detached unless kept; None at rest.
        v_seq: ``[T, N, ...]``, detached unless kept, with ``store_v_seq``; else None.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
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
        """Whether the next call starts where this one ends."""
        return self.step_mode == "s" if self.keep_state is None else self.keep_state

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the shape and dtype of x: ``[T, N, ...]``, or ``[N, ...]`` in single-step mode."""
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
    # torch.utils.checkpoint runs a forward once more inside backward. A node that went on from its state would then
    # start where the forward ended: its gradients would be wrong. Inside backward it starts from rest after a reset()
    # there, from a v that was assigned there, or from where a call inside the same backward ended; else it refuses.

    def _kept_v(self) -> Tensor | None:
        """The state to start from."""
        v = self.v
        if torch.compiler.is_compiling():
            return v
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "a node that keeps its state cannot run inside torch.func's transforms, which end with their tensors: "
                "use keep_state=False, or sewsnn.functional with v passed and returned"
            )
        self._check_repetition(v)
        if v is not None and v.is_inference() and not torch.is_inference_mode_enabled():
            v = v.clone()  # backward may have to keep it
        return v

    def _check_repetition(self, v) -> None:
        """Raises RuntimeError where a forward is repeated inside backward from another state than it had."""
        number = checks.backward_number()
        if number == -1:
            return
        if not isinstance(v, Tensor):  # at rest
            right = self.__dict__.get("_reset_in") == number
        elif self._was_left(v):
            right = self.__dict__["_left"][0] == number
        else:  # assigned, which has to be done again, too
            right = self.__dict__.get("_given_in") == number
        if not right:
            raise RuntimeError(
                f"{type(self).__name__} keeps its state and runs once more inside backward (activation checkpointing, "
                "torch.utils.checkpoint): it would not start from where the forward did, and gradients would be wrong. "
                "Call reset() of the node, or reset_net(net), or assign v at the beginning of the checkpointed function"
            )

    def _remember(self, v) -> None:
        """In which backward pass, if in one, a state was left. It is not kept alive for that."""
        self.__dict__["_left"] = (checks.backward_number(), weakref.ref(v) if isinstance(v, Tensor) else None)

    def _was_left(self, v: Tensor) -> bool:
        """Whether a call left this state, rather than somebody assigned it."""
        left = self.__dict__.get("_left", (None, None))[1]
        return left is not None and left() is v

    def _follow(self, old, new) -> None:
        """The state has become another tensor, and was left where it was."""
        if isinstance(old, Tensor) and self._was_left(old):
            self.__dict__["_left"] = (self.__dict__["_left"][0], weakref.ref(new))

    def _note_reset(self) -> None:
        self.__dict__.pop("_left", None)
        self.__dict__["_reset_in"] = checks.backward_number()

    def settings(self) -> dict:
        """The neuron and its backend, as :func:`sewsnn.functional.multistep` takes them."""
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
        """Whether :meth:`settings` say all about the next call, so that an op of several layers may stand for it."""
        known = type(self).forward is _FORWARD and type(self).__call__ is nn.Module.__call__
        return known and self.step_mode == "m" and not self.keeps_state and not self.store_v_seq

    def set_final_v(self, v: Tensor, graph_lost: bool) -> None:
        """What such an op leaves: ``v [N, ...]``, without a graph; ``graph_lost``: a kept state would have one."""
        if torch.compiler.is_compiling() or checks.outlives_its_code(v):
            self.v = v
            self.v_seq = None

    def charge_arguments(self) -> dict:
        """What the class adds to the neuron's settings: ``tau`` or ``w``, and ``decay_input``."""
        return {}

    def reset(self) -> None:
        """Back to rest."""
        self.v = None
        self.v_seq = None
        self._note_reset()

    def detach(self) -> None:
        """Cuts the kept state from the graph of the calls before (truncated back-propagation through time)."""
        old = self.v
        self.v = None if old is None else old.detach()
        self.v_seq = None if self.v_seq is None else self.v_seq.detach()
        self._follow(old, self.v)

    def _apply(self, fn, recurse=True):
        # The state first: what cannot be converted leaves the parameters as they were.
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


_FORWARD = BaseNode.forward  # what an op computes, whatever is put in its place later


class IFNode(BaseNode):
    """Integrate-and-fire: ``h = v + x``. See :class:`BaseNode`, :func:`sewsnn.functional.if_multistep`."""

    kind = native.IF


class LIFNode(BaseNode):
    """Leaky integrate-and-fire: ``h = v + (x - (v - v_reset)) / tau``; without ``decay_input`` x is not divided by tau.

    Args:
        tau: membrane time constant, at least 1.
        decay_input: see above.

    The rest as in :class:`BaseNode`; :func:`sewsnn.functional.lif_multistep` has the formulas.
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
    """LIF whose tau is learnt: ``1 / tau = sigmoid(w)``, one scalar parameter ``w``.

    Args:
        init_tau: tau to begin with, above 1; ``w = -log(init_tau - 1)``.
        decay_input: as in :class:`LIFNode`.
        tau_grad: ``"full"``, or ``"frozen"`` for no gradient of w: the authors' published PLIF networks were trained
            with an almost frozen tau (their kernel kept one thread block's share of the gradient).

    The rest as in :class:`BaseNode`; :func:`sewsnn.functional.plif_multistep` has the formulas.
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
        """The membrane time constant as it is now."""
        return 1 / float(self.w.detach().sigmoid())

    def charge_arguments(self):
        w = self.w if self.tau_grad == "full" else self.w.detach()
        return {"w": w, "decay_input": self.decay_input}

    def extra_repr(self):
        return f"tau={self.tau:.4g}, decay_input={self.decay_input}, {super().extra_repr()}"
