"""Neurons that integrate their input without a learnt parameter: IF and its quadratic form."""

from sewsnn.neuron import settings
from sewsnn.neuron.base import BaseNode
from sewsnn.surrogate import Sigmoid

__all__ = ["IFNode", "QIFNode"]


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

    kind = "IF"


class QIFNode(BaseNode, settings={"v_c": settings.number, "a0": settings.number, "v_rest": settings.number}):
    """Quadratic integrate-and-fire neuron.

        h = v + (x + a0 (v - v_rest) (v - v_c)) / tau

    The neuron then fires, s = 1 if h >= v_threshold else 0, and resets v. Below v_c the potential falls back to v_rest
    without input, above v_c it grows by itself. The defaults are SpikingJelly's, except for ``step_mode``.

    Args:
        tau: membrane time constant in time-steps, at least 1. Default 2.0.
        v_c: critical potential. Default 0.8.
        a0: strength of the quadratic term. Default 1.0.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_rest: resting potential. Default 0.0.
        v_reset: membrane potential after a spike and at the start (hard reset). Default -0.1. None: soft reset,
            v = h - s v_threshold, and v starts at 0.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default None:
            ``Sigmoid(4.0)``.
        detach_reset: treat the spike inside the reset as a constant in backward. Default False.
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
        >>> node = QIFNode(tau=2.0)
        >>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...] -> 0 or 1, [T, N, ...]

    Source: QIFNode of SpikingJelly 2.0; Gerstner et al., Neuronal Dynamics, section 5.3.
    """

    kind = "QIF"

    def __init__(
        self,
        tau: float = 2.0,
        v_c: float = 0.8,
        a0: float = 1.0,
        v_threshold: float = 1.0,
        v_rest: float = 0.0,
        v_reset: float | None = -0.1,
        surrogate_function=None,
        detach_reset: bool = False,
        *args,
        **kwargs,
    ):
        surrogate_function = Sigmoid(4.0) if surrogate_function is None else surrogate_function
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, *args, **kwargs)
        self.tau = tau
        self.v_c = v_c
        self.a0 = a0
        self.v_rest = v_rest

    def extra_repr(self):
        return f"tau={self.tau}, v_c={self.v_c}, a0={self.a0}, v_rest={self.v_rest}, {super().extra_repr()}"
