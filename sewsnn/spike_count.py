"""The firing function of neurons that send several spikes in a time-step: :class:`MultiLevelSpikeCount`."""

import numbers
from typing import ClassVar

import torch
from torch import Tensor

from sewsnn.ops.neuron import no_forward_mode
from sewsnn.ops.spec import check_number

MOST = 1 << 22  #: largest D: float32 has halves up to here; csrc/neurons/integer.h has the same limit


class _Count(torch.autograd.Function):
    """The rounded ``counts.primitive`` in forward, ``counts.gradient`` in backward."""

    generate_vmap_rule = True
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(x, counts):
        return counts.primitive(x).round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.counts = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.counts.gradient(x), None


class _TracedCount(_Count):
    """:class:`_Count` for torch.compile, which cannot trace a ``jvp`` and refuses forward mode itself."""

    jvp = torch.autograd.Function.jvp


class MultiLevelSpikeCount:
    """The number of spikes of :class:`sewsnn.neuron.ILIFNode`: n = round(clamp(x, 0, D)) with x = h / v_threshold.

    Halves are rounded to even. The gradient is a straight-through estimate: dn/dx is 1 where lower <= x <= upper, and 0
    elsewhere.

    Args:
        max_spike_count: D, the largest number of spikes in one time-step, an int from 1 to 2**22. Default 4.
        grad_window: ``(lower, upper)``, the values of x that pass a gradient. Default None: ``(0, D)``.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        AttributeError: you assign to an attribute, which nodes may share: make a new object instead.

    Example:
        >>> counts = MultiLevelSpikeCount(4)
        >>> n = counts(torch.tensor([-1.0, 0.4, 2.6, 9.0]))  # 0, 0, 3, 4

    Source: Luo et al., ECCV 2024 (I-LIF); the name and the arguments are those of SpikingJelly.
    """

    kind: ClassVar[str | None] = "ILIF"  #: the neuron whose compiled kernels fire like this; None: no kernel does

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not {"__call__", "primitive", "gradient"}.isdisjoint(vars(cls)):
            cls.kind = None  # the class overrides a method, so the kernels compute something else

    def __init__(self, max_spike_count: int = 4, grad_window: tuple[float, float] | None = None):
        if isinstance(max_spike_count, bool) or not isinstance(max_spike_count, numbers.Integral):
            raise TypeError(f"max_spike_count must be an int, got {type(max_spike_count).__name__}")
        if not 1 <= max_spike_count <= MOST:
            raise ValueError(f"max_spike_count must be at least 1 and at most {MOST}, got {max_spike_count}")
        window = (0, max_spike_count) if grad_window is None else grad_window
        if not isinstance(window, tuple | list) or len(window) != 2:
            raise TypeError(f"grad_window must be (lower, upper) or None, got {window!r}")
        lower, upper = window
        check_number("grad_window[0]", lower)
        check_number("grad_window[1]", upper)
        if lower > upper:
            raise ValueError(f"grad_window must be (lower, upper) with lower <= upper, got {grad_window}")
        self.__dict__.update(max_spike_count=int(max_spike_count), grad_window=(float(lower), float(upper)))

    def __setattr__(self, name: str, value):
        raise AttributeError(
            f"{name} of {self!r} cannot be changed, because nodes may share it: assign a new MultiLevelSpikeCount(...)"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The number of spikes.

        Args:
            x: h / v_threshold, any shape.

        Returns:
            Whole numbers from 0 to D in the shape and dtype of x.
        """
        return (_TracedCount if torch.compiler.is_compiling() else _Count).apply(x, self)

    def gradient(self, x: Tensor) -> Tensor:
        """dn/dx in backward.

        Args:
            x: h / v_threshold, any shape.

        Returns:
            1 where lower <= x <= upper, else 0, in the shape and dtype of x.
        """
        lower, upper = self.grad_window
        return ((x >= lower) & (x <= upper)).to(x)

    def primitive(self, x: Tensor) -> Tensor:
        """The number of spikes before it is rounded.

        Args:
            x: h / v_threshold, any shape.

        Returns:
            clamp(x, 0, D) in the shape and dtype of x.
        """
        return x.clamp(0, self.max_spike_count)

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self):
        return hash((type(self), self.max_spike_count, self.grad_window))

    def __repr__(self):
        return f"{type(self).__name__}({self.max_spike_count}, grad_window={self.grad_window})"
