"""A neuron that sends several spikes in a time-step."""

from sewsnn.neuron import settings
from sewsnn.neuron.base import BaseNode
from sewsnn.surrogate import MultiLevelSpikeCount

__all__ = ["ILIFNode"]


def _counts(name: str, value) -> MultiLevelSpikeCount:
    if not isinstance(value, MultiLevelSpikeCount):
        raise TypeError(f"{name} must be a sewsnn.surrogate.MultiLevelSpikeCount, got {type(value).__name__}")
    return value


def _none(name: str, value) -> None:
    if value is not None:
        raise ValueError(f"{name} must be None: the reset of ILIFNode is always soft")


_SETTINGS = {
    "normalize": settings.flag,
    "surrogate_function": _counts,
    "v_threshold": settings.positive,
    "v_reset": _none,
}


class ILIFNode(BaseNode, settings=_SETTINGS):
    """Integer leaky integrate-and-fire neuron (I-LIF): up to D spikes in a time-step.

        h = (1 - 1 / tau) v + x
        n = round(clamp(h / v_threshold, 0, D))
        v = h - n v_threshold

    Halves are rounded to even. The gradient of n is a straight-through estimate: dn/d(h / v_threshold) is 1 inside the
    window of ``surrogate_function``. The reset is always soft. The defaults are SpikingJelly's, except for
    ``step_mode``.

    The output is a count, not a spike of 0 or 1. A layer after it computes the same as if it got n spikes one after the
    other (without its bias), and :func:`sewsnn.analysis.count_operations` counts them so. Packed spikes and the
    connections AND and IAND need spikes of 0 or 1 and do not take it. bfloat16 holds whole numbers up to 256 exactly.

    Args:
        tau: membrane time constant in time-steps, at least 1. Default 4/3, so that v keeps a quarter.
        v_threshold: firing threshold, the potential of one spike, above 0. Default 1.0.
        surrogate_function: a :class:`sewsnn.surrogate.MultiLevelSpikeCount`, which holds D and the window. Default
            None: ``MultiLevelSpikeCount(4)``, with a gradient for 0 <= h / v_threshold <= 4.
        detach_reset: treat n inside the reset as a constant in backward. Default False.
        step_mode: ``"m"`` (default) for input ``[T, N, ...]``, or ``"s"`` for one time-step ``[N, ...]`` per call.
        backend: ``"auto"`` (default; the compiled kernels where they can run, else torch), ``"native"`` (the compiled
            kernels), or ``"torch"`` (the reference). ``"cupy"`` always raises ``BackendError`` in this version.
        store_v_seq: keep the membrane potential of every time-step in ``v_seq``. Default False.
        keep_state: start each call from the ``v`` of the previous call, with its autograd graph. Default None: only in
            single-step mode.
        store_v: write the final membrane potential to ``v``. Default True. ``keep_state=True`` needs it.
        normalize: return n / D, in [0, 1], instead of n. Default False.

    A call returns spikes in the shape and dtype of the input; ``v`` and ``v_seq`` hold the membrane potential in
    float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        sewsnn.BackendError: ``backend`` is ``"cupy"``.

    Example:
        >>> node = ILIFNode(surrogate_function=sewsnn.surrogate.MultiLevelSpikeCount(4))
        >>> counts = node(3 * torch.rand(4, 8, 16))  # [T, N, ...] -> 0, 1, 2, 3 or 4, [T, N, ...]

    Source: Luo et al., ECCV 2024 (I-LIF); ``normalize``: Yao et al., TPAMI 2025 (normalised I-LIF).
    """

    kind = "ILIF"

    def __init__(
        self,
        tau: float = 4 / 3,
        v_threshold: float = 1.0,
        surrogate_function: MultiLevelSpikeCount | None = None,
        detach_reset: bool = False,
        step_mode: str = "m",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        keep_state: bool | None = None,
        store_v: bool = True,
        normalize: bool = False,
    ):
        counts = MultiLevelSpikeCount(4) if surrogate_function is None else surrogate_function
        kept = {"keep_state": keep_state, "store_v": store_v}
        super().__init__(v_threshold, None, counts, detach_reset, step_mode, backend, store_v_seq, **kept)
        self.tau = tau
        self.normalize = normalize

    def _extra(self):
        D = self.surrogate_function.max_spike_count
        window = self.surrogate_function.grad_window
        return D, *window, D if self.normalize else 1

    def extra_repr(self):
        return f"tau={self.tau:.4g}, normalize={self.normalize}, {super().extra_repr()}"
