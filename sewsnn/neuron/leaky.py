"""Leaky neurons, whose time constant and threshold may be learnt."""

import math

import torch
from torch import Tensor, nn

from sewsnn.neuron import settings
from sewsnn.neuron.base import BaseNode
from sewsnn.ops import checks
from sewsnn.ops.spec import check_tau

__all__ = ["LIFNode", "ParametricLIFNode"]


class _Leaky(BaseNode):
    """A leaky neuron. A learnt number is an nn.Parameter: ``w`` with 1 / tau = sigmoid(w), or ``threshold``. The plain
    setting, ``tau`` or ``v_threshold``, then reads the present value of the parameter and cannot be assigned."""

    tau_grad = "full"
    _channels: int | None = None
    _learns_tau = False
    _learns_threshold = False

    def _learn(self, channels: int | None, *, tau: float | None = None, v_threshold: float | None = None) -> None:
        """Makes a parameter of each number that is given, which starts at it."""
        if channels is not None and tau is None and v_threshold is None:
            raise ValueError("channels needs learn_tau=True or learn_threshold=True: only learnt numbers differ")
        self._channels = channels = settings.channels("channels", channels)
        shape = () if channels is None else (channels,)
        if tau is not None:
            self._learns_tau = True
            self.w = nn.Parameter(torch.full(shape, -math.log(tau - 1)))
        if v_threshold is not None:
            self._learns_threshold = True
            self.threshold = nn.Parameter(torch.full(shape, float(v_threshold)))

    @property
    def channels(self) -> int | None:
        """The number of channels, each of which learns its own numbers; None: one number for the layer."""
        return self._channels

    # A property hides the instance's dictionary, where nn.Module keeps a plain setting: here it reads and writes it.
    # A getter that raises AttributeError makes Python ask nn.Module's __getattr__, which finds parameters.

    def _plain(self, name: str) -> float:
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(name) from None

    def _present(self, learnt: Tensor) -> float | Tensor:
        """The value of a learnt setting without a graph."""
        return learnt.detach().clone() if self.channels is not None else float(learnt.detach())

    def _assign(self, name: str, parameter: str, learns: bool, value: float) -> None:
        if learns:
            raise AttributeError(
                f"{name} is learnt and cannot be assigned: change the parameter {parameter} inside torch.no_grad()"
            )
        self.__dict__[name] = value

    def _delete(self, name: str, parameter: str, learns: bool) -> None:
        if learns:
            raise AttributeError(f"{name} is learnt and cannot be deleted: it is the parameter {parameter}")
        self._plain(name)
        del self.__dict__[name]

    @property
    def tau(self) -> float | Tensor:
        """The membrane time constant in time-steps. If it is learnt: the present ``1 / sigmoid(w)``, a float or with
        ``channels`` a tensor ``[C]``."""
        return self._present(1 / self.w.sigmoid()) if self._learns_tau else self._plain("tau")

    @tau.setter
    def tau(self, value: float) -> None:
        self._assign("tau", "w", self._learns_tau, value)

    @tau.deleter
    def tau(self) -> None:
        self._delete("tau", "w", self._learns_tau)

    @property
    def v_threshold(self) -> float | Tensor:
        """The firing threshold. If it is learnt: the present ``threshold``, a float or with ``channels`` a tensor
        ``[C]``."""
        return self._present(self.threshold) if self._learns_threshold else self._plain("v_threshold")

    @v_threshold.setter
    def v_threshold(self, value: float) -> None:
        self._assign("v_threshold", "threshold", self._learns_threshold, value)

    @v_threshold.deleter
    def v_threshold(self) -> None:
        self._delete("v_threshold", "threshold", self._learns_threshold)

    @property
    def kind(self) -> str:
        """The neuron's name in :data:`sewsnn.ops.reference.NEURONS`."""
        if self._learns_threshold or (self._learns_tau and self.channels is not None):
            return "LearntLIF"
        return "PLIF" if self._learns_tau else "LIF"

    def _constants(self) -> dict:
        numbers = {"decay_input": self.decay_input}
        if not self._learns_tau:
            numbers["tau"] = self.tau
        if not self._learns_threshold:
            numbers["v_threshold"] = self.v_threshold
        if self.kind == "LearntLIF":
            numbers["extra"] = (float(self._learns_tau),)
        return numbers

    def learnt_parameters(self, state: torch.dtype) -> Tensor | None:
        if not (self._learns_tau or self._learns_threshold):
            return None
        leak = threshold = None
        if self._learns_tau:
            w = self.w if self.tau_grad == "full" else self.w.detach()
            leak = w.to(state).sigmoid()
            if self.kind == "PLIF":
                return leak.reshape(())
        if self._learns_threshold:
            threshold = self.threshold.to(state)
        if leak is None:
            leak = torch.full_like(threshold, 1 / self.tau)
        if threshold is None:
            threshold = torch.full_like(leak, self.v_threshold)
        return torch.stack([leak.reshape(-1), threshold.reshape(-1)])

    def check_channels(self, name: str, shape, axis: int) -> None:
        if self.channels is not None:
            checks.check_channels(name, shape, self.channels, axis)

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        if isinstance(value, Tensor):
            return f"{name}={value.mean():.4g} (mean)"
        return f"{name}={value:.4g}" if name == "tau" and self._learns_tau else f"{name}={value}"

    def extra_repr(self):
        learnt = [f"learn_threshold={self._learns_threshold}"] if self._learns_threshold else []
        learnt += [] if self.channels is None else [f"channels={self.channels}"]
        return ", ".join([self._shown("tau"), f"decay_input={self.decay_input}", super().extra_repr(), *learnt])


class LIFNode(_Leaky):
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
        learn_threshold: learn the firing threshold, as the parameter ``threshold``. Default False.
        learn_tau: learn the time constant, as the parameter ``w`` with 1 / tau = sigmoid(w). It starts at tau, which
            must then be above 1. Default False.
        channels: number of channels C. Each channel then learns its own numbers, and the input is ``[T, N, C, ...]``
            (single-step: ``[N, C, ...]``). Default None: one number for the layer.

    Attributes:
        w: with ``learn_tau``, the parameter of the time constant, shape ``[]`` or ``[C]``. ``tau`` then reads its
            present value: a float, or with ``channels`` a tensor without a graph.
        threshold: with ``learn_threshold``, the parameter of the threshold, shape ``[]`` or ``[C]``. ``v_threshold``
            then reads its present value: a float, or with ``channels`` a tensor without a graph.

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

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        *args,
        learn_threshold: bool = False,
        learn_tau: bool = False,
        channels: int | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        learn_tau = settings.flag("learn_tau", learn_tau)
        learn_threshold = settings.flag("learn_threshold", learn_threshold)
        self.tau = tau
        self.decay_input = decay_input
        if learn_tau and tau == 1:
            raise ValueError("tau must be above 1 if it is learnt: sigmoid(w) = 1 needs an infinite w")
        self._learn(channels, tau=tau if learn_tau else None, v_threshold=self.v_threshold if learn_threshold else None)


class ParametricLIFNode(_Leaky):
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
        learn_threshold: learn the firing threshold, as the parameter ``threshold``. Default False.
        channels: number of channels C. Each channel then learns its own numbers, and the input is ``[T, N, C, ...]``
            (single-step: ``[N, C, ...]``). Default None: one number for the layer.

    Attributes:
        w: the parameter of the time constant, shape ``[]``, or ``[C]`` with ``channels``. ``tau`` reads its present
            value: a float, or with ``channels`` a tensor without a graph.
        threshold: with ``learn_threshold``, the parameter of the threshold, shape ``[]`` or ``[C]``. ``v_threshold``
            then reads its present value: a float, or with ``channels`` a tensor without a graph.

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

    _learns_tau = True

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        *args,
        tau_grad: str = "full",
        learn_threshold: bool = False,
        channels: int | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        learn_threshold = settings.flag("learn_threshold", learn_threshold)
        check_tau(init_tau, "init_tau")
        self.decay_input = decay_input
        self.tau_grad = tau_grad
        if init_tau == 1:
            raise ValueError("init_tau must be above 1: sigmoid(w) = 1 needs an infinite w")
        self._learn(channels, tau=init_tau, v_threshold=self.v_threshold if learn_threshold else None)
