"""Surrogate gradients: the derivative that backward uses for the spike s = Heaviside(x) with x = h - v_threshold.

Every surrogate is a callable object. A call returns the spike, and autograd uses the surrogate as its derivative.
``gradient(x)`` returns the surrogate sigma'(x); ``primitive(x)`` returns a smooth function sigma(x) with that
derivative. The compiled kernels contain the same formulas under the same names (``csrc/neurons/surrogate.h``); ``kind``
is a formula's number there. The paper uses :class:`ATan`, :class:`Rectangular`, :class:`Constant` (supplement, Table
S3) and :class:`UnitATan` (A.5).

To use a surrogate of your own, derive a class from :class:`Surrogate` and write ``gradient``. It runs on the torch
backend. :class:`MultiLevelSpikeCount` is for :class:`sewsnn.neuron.ILIFNode`, which sends several spikes in a
time-step.

>>> import torch, sewsnn
>>> node = sewsnn.neuron.IFNode(surrogate_function=sewsnn.surrogate.Sigmoid(alpha=4.0))
"""

import math
import numbers
from typing import ClassVar

import torch

from sewsnn.ops.checks import is_finite
from sewsnn.ops.neuron import no_forward_mode
from sewsnn.ops.registry import SURROGATES
from sewsnn.ops.spec import constant
from sewsnn.spike_count import MultiLevelSpikeCount  # noqa: F401 - not in __all__: it is no surrogate of a spike

__all__ = [
    "ATan",
    "Constant",
    "Erf",
    "PiecewiseExp",
    "PiecewiseQuadratic",
    "Rectangular",
    "Sigmoid",
    "SoftSign",
    "SuperSpike",
    "Surrogate",
    "UnitATan",
]


class _Spike(torch.autograd.Function):
    """Heaviside step in forward (x >= 0 fires, NaN does not), ``surrogate.gradient`` in backward."""

    generate_vmap_rule = True
    jvp = staticmethod(no_forward_mode)

    @staticmethod
    def forward(x, surrogate):
        return (x >= 0).to(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.gradient(x), None


class _TracedSpike(_Spike):
    """:class:`_Spike` for torch.compile, which cannot trace a ``jvp`` and refuses forward mode itself."""

    jvp = torch.autograd.Function.jvp


_METHODS = ("gradient", "__call__")  # the methods that the kernels replace with their own formulas


class Surrogate:
    """Base class of the surrogate gradients. Each has one positive, finite parameter.

    You can read the parameter as ``parameter`` and under the name that the constructor of the subclass uses (``alpha``,
    ``width``, ...). You cannot change it, because several nodes may share one surrogate: assign a new surrogate
    instead, ``node.surrogate_function = ATan(alpha=4)``.

    Args:
        parameter: positive, finite number. Default 1.0.

    Raises:
        TypeError: the parameter is not a number.
        ValueError: the parameter is not positive and finite.
        AttributeError: you assign to the parameter of a surrogate that has a compiled form.

    Example (your own surrogate, which runs on the torch backend):
        >>> class Gauss(Surrogate):
        ...     def gradient(self, x): return (-self.parameter * x * x).exp()
        >>> spikes = Gauss(2.0)(torch.randn(4))
    """

    kind: ClassVar[int | None] = None  #: number of the formula in the compiled kernels; None: they have no formula
    parameter_name: ClassVar[str] = "alpha"

    def __init_subclass__(cls, compiled: bool = False, **kwargs):
        super().__init_subclass__(**kwargs)
        if compiled:  # the library lists the formula under the name of the class
            cls.kind = SURROGATES.get(cls.__name__)
        place = {name: next(i for i, c in enumerate(cls.__mro__) if name in vars(c)) for name in ("kind", *_METHODS)}
        if any(place[name] < place["kind"] for name in _METHODS):
            cls.kind = None  # the class overrides a method, so the formula that the kernels have is not its own

    def __init__(self, parameter: float = 1.0):
        name = f"{type(self).__name__}: {self.parameter_name}"
        if isinstance(parameter, bool) or not isinstance(parameter, numbers.Real):
            raise TypeError(f"{name} must be a number, got {type(parameter).__name__}")
        if not (is_finite(parameter) and parameter > 0):
            raise ValueError(f"{name} must be positive and finite, got {parameter}")
        self.parameter = constant(parameter)

    def __setattr__(self, name: str, value):
        if self.kind is not None and "parameter" in self.__dict__:
            if name in ("parameter", self.parameter_name):
                new = f"{type(self).__name__}({self.parameter_name}=...)"
                raise AttributeError(
                    f"{name} of {self!r} cannot be changed, because nodes may share it: assign a new one, {new}"
                )
            if name in _METHODS:
                raise AttributeError(
                    f"{name} of {self!r} cannot be changed: derive a class and override {name} in that class"
                )
        super().__setattr__(name, value)

    def __getattr__(self, name: str):  # Python calls it only for attributes it does not find elsewhere
        if name == self.parameter_name and "parameter" in self.__dict__:
            return self.parameter
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The spike: 1 where x >= 0, else 0. Its derivative in backward is :meth:`gradient`.

        Args:
            x: h - v_threshold, any shape.

        Returns:
            Spikes in the shape and dtype of x.
        """
        return (_TracedSpike if torch.compiler.is_compiling() else _Spike).apply(x, self)

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """The surrogate gradient sigma'(x).

        Args:
            x: h - v_threshold, any shape.

        Returns:
            sigma'(x) in the shape of x.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define gradient(x)")

    def primitive(self, x: torch.Tensor) -> torch.Tensor:
        """The smooth function sigma(x) whose derivative is :meth:`gradient`, with sigma(0) = 1/2.

        Args:
            x: h - v_threshold, any shape.

        Returns:
            sigma(x) in the shape of x.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define primitive(x)")

    def __eq__(self, other):
        return type(self) is type(other) and self.parameter == other.parameter

    def __hash__(self):
        return hash((type(self), self.parameter))

    def __repr__(self):
        return f"{type(self).__name__}({self.parameter_name}={self.parameter:g})"


class ATan(Surrogate, compiled=True):
    """Arctangent surrogate: sigma'(x) = alpha / (2 (1 + (pi alpha x / 2)^2)).

    The paper uses it with alpha = 2 (supplement, Table S3: ArcTan).

    Args:
        alpha: steepness, positive and finite. sigma'(0) = alpha / 2. Default 2.0.

    Raises:
        TypeError, ValueError: alpha is not a positive, finite number.

    Example:
        >>> surrogate = ATan(alpha=2.0)
        >>> slope = surrogate.gradient(torch.zeros(1))  # 1.0
    """

    def __init__(self, alpha: float = 2.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = math.pi * self.parameter / 2 * x
        return self.parameter / 2 / (1 + y * y)

    def primitive(self, x):
        return (math.pi * self.parameter / 2 * x).atan() / math.pi + 0.5


class Rectangular(Surrogate, compiled=True):
    """Rectangular surrogate: sigma'(x) = 1 / width for |x| < width / 2, else 0.

    The paper uses it with width = 1 (supplement, Table S3).

    Args:
        width: width of the rectangle, positive and finite. Default 1.0.

    Raises:
        TypeError, ValueError: width is not a positive, finite number.
    """

    parameter_name = "width"

    def __init__(self, width: float = 1.0):
        super().__init__(width)

    def gradient(self, x):
        return (x.abs() < self.parameter / 2).to(x) * (1 / self.parameter)

    def primitive(self, x):
        return (x / self.parameter + 0.5).clamp(0, 1)


class Constant(Surrogate, compiled=True):
    """Constant surrogate: sigma'(x) = value for all x.

    The paper uses it with value = 1 (supplement, Table S3).

    Args:
        value: the constant, positive and finite. Default 1.0.

    Raises:
        TypeError, ValueError: value is not a positive, finite number.
    """

    parameter_name = "value"

    def __init__(self, value: float = 1.0):
        super().__init__(value)

    def gradient(self, x):
        return torch.full_like(x, self.parameter)

    def primitive(self, x):
        return self.parameter * x + 0.5


class Sigmoid(Surrogate, compiled=True):
    """Sigmoid surrogate: sigma'(x) = alpha s (1 - s) with s = 1 / (1 + exp(-alpha x)).

    Args:
        alpha: steepness, positive and finite. sigma'(0) = alpha / 4. Default 4.0.

    Raises:
        TypeError, ValueError: alpha is not a positive, finite number.
    """

    def __init__(self, alpha: float = 4.0):
        super().__init__(alpha)

    def gradient(self, x):
        e = (-(self.parameter * x).abs()).exp()
        return self.parameter * e / ((1 + e) * (1 + e))

    def primitive(self, x):
        return (self.parameter * x).sigmoid()


class PiecewiseQuadratic(Surrogate, compiled=True):
    """Triangular surrogate (its primitive is piecewise quadratic): sigma'(x) = max(0, alpha - alpha^2 |x|).

    Args:
        alpha: height of the triangle, positive and finite. Its half width is 1 / alpha. Default 1.0.

    Raises:
        TypeError, ValueError: alpha is not a positive, finite number.
    """

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def gradient(self, x):
        return (self.parameter - self.parameter**2 * x.abs()).clamp(min=0)

    def primitive(self, x):
        y = (self.parameter * x).clamp(-1, 1)
        return y - y * y.abs() / 2 + 0.5


class PiecewiseExp(Surrogate, compiled=True):
    """Exponential surrogate: sigma'(x) = alpha / 2 exp(-alpha |x|).

    Args:
        alpha: decay rate, positive and finite. sigma'(0) = alpha / 2. Default 1.0.

    Raises:
        TypeError, ValueError: alpha is not a positive, finite number.
    """

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def gradient(self, x):
        return self.parameter / 2 * (-(self.parameter * x.abs())).exp()

    def primitive(self, x):
        tail = (-(self.parameter * x.abs())).exp() / 2
        return torch.where(x < 0, tail, 1 - tail)


class SoftSign(Surrogate, compiled=True):
    """Soft-sign surrogate: sigma'(x) = 1 / (2 alpha (1 / alpha + |x|)^2).

    Args:
        alpha: steepness, positive and finite. sigma'(0) = alpha / 2. Default 2.0.

    Raises:
        TypeError, ValueError: alpha is not a positive, finite number.
    """

    def __init__(self, alpha: float = 2.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = 1 / self.parameter + x.abs()
        return 1 / (2 * self.parameter * (y * y))

    def primitive(self, x):
        y = self.parameter * x
        return (y / (1 + y.abs()) + 1) / 2


class SuperSpike(Surrogate, compiled=True):
    """SuperSpike surrogate: sigma'(x) = alpha / (1 + |x|)^2.

    Args:
        alpha: height at x = 0, positive and finite. Default 1.0.

    Raises:
        TypeError, ValueError: alpha is not a positive, finite number.
    """

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = 1 + x.abs()
        return self.parameter / (y * y)

    def primitive(self, x):
        return self.parameter * x / (1 + x.abs()) + 0.5


class Erf(Surrogate, compiled=True):
    """Gaussian surrogate (its primitive is the error function): sigma'(x) = alpha / sqrt(pi) exp(-(alpha x)^2).

    Args:
        alpha: steepness, positive and finite. sigma'(0) = alpha / sqrt(pi). Default 2.0.

    Raises:
        TypeError, ValueError: alpha is not a positive, finite number.
    """

    def __init__(self, alpha: float = 2.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = self.parameter * x
        return self.parameter / math.sqrt(math.pi) * (-(y * y)).exp()

    def primitive(self, x):
        return ((self.parameter * x).erf() + 1) / 2


class UnitATan(Surrogate, compiled=True):
    """Arctangent surrogate that is 1 at x = at and x = -at: sigma'(x) = (1 + (pi at)^2) / (1 + (pi x)^2).

    With at = 1/2 and v_threshold = 1/2, the derivative of the spike is 1 for an input of 0 and for an input of 1. This
    is the 0/1-gradient experiment of the supplement (A.5), where sigma'(x) = (1 + pi^2 / 4) / (1 + (pi x)^2).

    Args:
        at: distance from the threshold at which sigma' is 1, positive and finite. Default 0.5.

    Raises:
        TypeError, ValueError: at is not a positive, finite number.

    Example:
        >>> surrogate = UnitATan(at=0.5)
        >>> slope = surrogate.gradient(torch.tensor([-0.5, 0.5]))  # 1.0, 1.0
    """

    parameter_name = "at"

    def __init__(self, at: float = 0.5):
        super().__init__(at)
        self._height = 1 + (math.pi * self.parameter) ** 2

    def gradient(self, x):
        y = math.pi * x
        return self._height / (1 + y * y)

    def primitive(self, x):
        return (math.pi * x).atan() * (self._height / math.pi) + 0.5
