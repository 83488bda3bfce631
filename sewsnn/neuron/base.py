"""The base class of all nodes: settings, state, calls."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sewsnn import functional
from sewsnn.neuron.settings import SETTINGS
from sewsnn.neuron.state import StatefulNode
from sewsnn.ops import checks
from sewsnn.ops import neuron as native
from sewsnn.ops.load import resolve_backend
from sewsnn.ops.reference import NEURONS, state_dtype
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan

__all__ = ["BaseNode"]


class BaseNode(StatefulNode):
    """Base class of all nodes.

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

    kind: ClassVar[str] = "IF"  #: the neuron's name in :data:`sewsnn.ops.reference.NEURONS`
    _settings: ClassVar[dict] = SETTINGS
    _keeps_spec: ClassVar[bool] = True

    def __init_subclass__(cls, settings: dict | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._settings = cls._settings | (settings or {})
        others = (base for base in cls.__mro__ if not base.__module__.startswith("sewsnn."))  # also mixins
        if any(not cls._settings.keys().isdisjoint(vars(base)) for base in others):
            cls._keeps_spec = False  # a setting may be a property, which changes without an assignment

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
        for name in self.state_names:
            setattr(self, name, None)
        self.v_seq: Tensor | None = None

    def __setattr__(self, name: str, value) -> None:
        check = self._settings.get(name)
        if check is not None:
            value = check(name, value)
            super().__setattr__("_spec", None)  # made again by the next call
        elif name in self.state_names and isinstance(value, nn.Parameter):
            raise TypeError(f"{name} is a state of {type(self).__name__}: it must be a tensor or None, got a Parameter")
        super().__setattr__(name, value)
        if name in self.state_names and not torch.compiler.is_compiling():
            self._note_given(name)

    def __delattr__(self, name: str) -> None:
        if name in self._settings:
            self.__dict__["_spec"] = None
        super().__delattr__(name)

    @property
    def keeps_state(self) -> bool:
        """Returns whether the next call starts from the membrane potential at which this call ends."""
        return self.step_mode == "s" if self.keep_state is None else self.keep_state

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """Runs the neurons over the input and returns their spikes.

        Args:
            x: input current ``[T, N, ...]``, or ``[N, ...]`` in single-step mode; float32, float16, bfloat16 or
                float64.
            T: number of time-steps of a merged batch ``[T * N, ...]``, in which all samples of the first time-step come
                first; the spikes are then merged as well, and nothing is copied. Only in multi-step mode. Default None.

        Returns:
            Spikes (0 or 1; :class:`ILIFNode`: their number), in the shape and dtype of x.

        Raises:
            TypeError: x, or the state that the node keeps, has the wrong type or dtype.
            ValueError: x has the wrong shape, or the state that the node keeps does not fit its shape or device: call
                ``reset()`` first.
            sewsnn.BackendError: the backend you asked for cannot run here.
            RuntimeError: the node keeps its state and runs inside a ``torch.func`` transform, or a second time inside
                backward (activation checkpointing) without a reset.
        """
        if T is not None:
            if self.step_mode == "s":
                raise ValueError(f"T is the number of time-steps of a merged batch, but step_mode is 's': got T={T}")
            return self.forward(checks.split("x", x, T)).flatten(0, 1)
        keep = self.keeps_state
        wanted = keep or (self.store_v and not torch.compiler.is_exporting())
        if self.store_v_seq and not torch.compiler.is_exporting():
            v_mode = native.V_SEQUENCE
        else:
            v_mode = native.V_FINAL if wanted else native.V_NONE
        single = self.step_mode == "s"
        learnt = None
        if isinstance(x, Tensor):
            self.check_channels("x", x.shape, 1 if single else 2)
            learnt = self.learnt_parameters(state_dtype(x.dtype))
            x = x.unsqueeze(0) if single else x
        s_seq, state = functional.multistep(
            x, self._kept_state(x) if keep else None, self.spec(), learnt, v_mode=v_mode, backend=self.backend
        )
        if state is not None and (keep or torch.compiler.is_compiling() or checks.outlives_its_code(state)):
            state = state if keep else state.detach()
            if v_mode == native.V_FINAL and not torch.compiler.is_compiling():
                self._keep_final_v(state)
            else:
                self._leave(state, v_mode == native.V_SEQUENCE)
            if keep and not torch.compiler.is_compiling():
                self._remember(*self._state())
        return s_seq.squeeze(0) if single else s_seq

    # ---- what the node computes

    def spec(self) -> NeuronSpec:
        """The neuron that the node computes, with its present settings."""
        if torch.compiler.is_compiling() or not self._keeps_spec:
            return self._new_spec()
        spec = self.__dict__.get("_spec")
        if spec is None:
            spec = self.__dict__["_spec"] = self._new_spec()
        return spec

    def _new_spec(self) -> NeuronSpec:
        settings = {"v_reset": self.v_reset, "detach_reset": self.detach_reset}
        return NeuronSpec(self.kind, self.surrogate_function, **settings, **self._constants())

    def _constants(self) -> dict:
        """The other numbers of the :class:`NeuronSpec` that are not learnt."""
        constants = {"v_threshold": self.v_threshold, "extra": self._extra()}
        return constants | {"tau": self.tau} if NEURONS[self.kind].uses_tau else constants

    def _extra(self) -> tuple:
        """The kind's further numbers: settings of the same names."""
        return tuple(getattr(self, name) for name in NEURONS[self.kind].extra)

    def _at_rest(self):
        return NEURONS[self.kind](self.spec(), self.learnt_parameters(torch.float64), dims=2).at_rest()

    def learnt_parameters(self, state: torch.dtype) -> Tensor | None:
        """The learnt parameters as the ops take them; None: the node has none.

        Args:
            state: dtype of the membrane potential.
        """
        return None

    def check_channels(self, name: str, shape, axis: int) -> None:
        """Raises ValueError unless an input has as many channels as the node has parameters.

        Args:
            name: how the message calls the input.
            shape: its shape.
            axis: the dimension that holds the channels.
        """

    def runs_native(self, device: torch.device) -> bool:
        """Returns whether the compiled kernels compute this node on a device.

        Args:
            device: the device of the input.

        Raises:
            sewsnn.BackendError: the node asks for a backend that cannot run there.
        """
        spec = self.spec()
        return resolve_backend(self.wanted_backend, device, spec.surrogate, spec.missing) == "native"

    @property
    def wanted_backend(self) -> str:
        """The backend that the node asks for."""
        return self.backend

    @property
    def binary_spikes(self) -> bool:
        """Returns whether a spike is 0 or 1. Otherwise spikes are counts, which cannot be packed, and which the
        connections AND and IAND do not take."""
        return NEURONS[self.kind].binary

    def can_be_fused(self) -> bool:
        """Returns whether a fused op may stand for the next call of this node.

        Returns:
            True if :meth:`spec` describes the next call completely: multi-step mode, no kept state, no
            ``store_v_seq``, and the class does not override ``forward`` or ``__call__``.
        """
        known = type(self).forward is _FORWARD and type(self).__call__ is nn.Module.__call__
        return known and self.step_mode == "m" and not self.keeps_state and not self.store_v_seq

    def _shown(self, name: str) -> str:
        """A setting as ``print`` shows it."""
        return f"{name}={getattr(self, name)}"

    def extra_repr(self) -> str:
        return (
            f"{self._shown('v_threshold')}, v_reset={self.v_reset}, surrogate_function={self.surrogate_function}, "
            f"detach_reset={self.detach_reset}, step_mode={self.step_mode!r}, backend={self.backend!r}"
        )


_FORWARD = BaseNode.forward  # the forward that a fused op computes, even if someone replaces the method later
