"""A neuron with a current between its input and its membrane potential."""

from sewsnn.neuron import settings
from sewsnn.neuron.base import BaseNode
from sewsnn.ops.reference import CUBALIF
from sewsnn.surrogate import Rectangular

__all__ = ["CUBALIFNode"]


class CUBALIFNode(BaseNode, settings={"c_decay": settings.number, "v_decay": settings.number}):
    """Current-based leaky integrate-and-fire neuron (CUBA-LIF).

        c = c c_decay + x,  h = v v_decay + c

    The neuron then fires, s = 1 if h >= v_threshold else 0, and resets v. A spike leaves the current c as it is. The
    defaults are SpikingJelly's, except for ``step_mode``.

    Args:
        c_decay: share of the current that is left after a time-step. Default 0.5.
        v_decay: share of the membrane potential that is left after a time-step. Default 0.75.
        v_threshold: firing threshold. The neuron fires where h >= v_threshold. Default 0.5.
        v_reset: membrane potential after a spike and at the start (hard reset). Default 0.0. None: soft reset,
            v = h - s v_threshold, and v starts at 0.
        surrogate_function: derivative of the spike in backward, one of :mod:`sewsnn.surrogate`. Default None:
            ``Rectangular(1.0)``.
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
        c: current ``[N, ...]`` after the last call; None at rest, where it is 0. It is kept, reset, detached, moved and
            copied as ``v`` is.

    A call returns spikes in the shape and dtype of the input; ``v`` and ``v_seq`` hold the membrane potential in
    float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: ``backend`` is ``"cupy"``.

    Example:
        >>> node = CUBALIFNode()
        >>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...] -> 0 or 1, [T, N, ...]

    Source: CUBALIFNode of SpikingJelly 2.0.
    """

    kind = "CUBALIF"
    state_names = CUBALIF.states

    def __init__(
        self,
        c_decay: float = 0.5,
        v_decay: float = 0.75,
        v_threshold: float = 0.5,
        v_reset: float | None = 0.0,
        surrogate_function=None,
        detach_reset: bool = False,
        *args,
        **kwargs,
    ):
        surrogate_function = Rectangular(1.0) if surrogate_function is None else surrogate_function
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, *args, **kwargs)
        self.c_decay = c_decay
        self.v_decay = v_decay

    def extra_repr(self):
        return f"c_decay={self.c_decay}, v_decay={self.v_decay}, {super().extra_repr()}"
