"""A neuron that adapts to its own activity."""

from sewsnn.neuron import settings
from sewsnn.neuron.base import BaseNode
from sewsnn.ops.reference import AdaptiveLIF
from sewsnn.surrogate import Sigmoid

__all__ = ["AdaptiveLIFNode"]


class AdaptiveLIFNode(
    BaseNode,
    settings=dict.fromkeys(("v_rest", "w_rest", "a", "b"), settings.number) | {"tau_w": settings.positive},
):
    """Adaptive leaky integrate-and-fire neuron: a current w works against the input.

        h = v + (x - (v - v_rest) - w) / tau
        w = w + (a (h - v_rest) - w) / tau_w + b s

    The neuron fires, s = 1 if h >= v_threshold else 0, and resets v. w grows with the membrane potential (a) and with
    every spike (b), so the neuron fires less and less often. Backward always goes through b s. The defaults, and the
    equation of w, are those of SpikingJelly's AdaptBaseNode, except for ``step_mode``. With a = b = 0 and w_rest = 0
    the neuron is a LIF neuron.

    Args:
        tau: membrane time constant in time-steps, at least 1. Default 2.0.
        v_rest: resting potential. Default 0.0.
        w_rest: w at the start. Default 0.0.
        tau_w: time constant of w in time-steps, above 0. Default 2.0.
        a: growth of w with the membrane potential. Default 0.0.
        b: growth of w with each spike. Default 0.0.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 1.0.
        v_reset: membrane potential after a spike and at the start (hard reset). Default 0.0. None: soft reset,
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

    Attributes:
        v: membrane potential ``[N, ...]`` after the last call; None at rest.
        w: adaptation current ``[N, ...]`` after the last call; None at rest, where it is w_rest. It is kept, reset,
            detached, moved and copied as ``v`` is.

    A call returns spikes in the shape and dtype of the input; ``v`` and ``v_seq`` hold the membrane potential in
    float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: ``backend`` is ``"cupy"``.

    Example:
        >>> node = AdaptiveLIFNode(a=0.1, b=0.5)
        >>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...] -> 0 or 1, [T, N, ...]

    Source: AdaptBaseNode of SpikingJelly 2.0; Gerstner et al., Neuronal Dynamics, section 6.1.
    """

    kind = "AdaptiveLIF"
    state_names = AdaptiveLIF.states

    def __init__(
        self,
        tau: float = 2.0,
        v_rest: float = 0.0,
        w_rest: float = 0.0,
        tau_w: float = 2.0,
        a: float = 0.0,
        b: float = 0.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        *args,
        **kwargs,
    ):
        surrogate_function = Sigmoid(4.0) if surrogate_function is None else surrogate_function
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, *args, **kwargs)
        self.tau = tau
        self.v_rest = v_rest
        self.w_rest = w_rest
        self.tau_w = tau_w
        self.a = a
        self.b = b

    def extra_repr(self):
        names = ("tau", *AdaptiveLIF.extra)
        return ", ".join([*(f"{name}={getattr(self, name)}" for name in names), super().extra_repr()])
