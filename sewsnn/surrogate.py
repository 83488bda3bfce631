"""Surrogate gradients: the derivative backward uses for the spike s = Heaviside(x), x = h - v_threshold.

Each class is callable (the spike, whose gradient is the surrogate), and has ``gradient(x)``, the surrogate, and
``primitive(x)``, a smooth function with that derivative. The compiled kernels hold the same formulas
(``csrc/neurons/surrogate.h``) under the numbers in ``kind``. The paper's are :class:`ATan`, :class:`Rectangular`,
:class:`Constant` (supplement, Table S3) and :class:`UnitATan` (A.5).

To try one of your own, derive from :class:`Surrogate` and write ``gradient``; it runs on the torch backend.
"""

import math
import numbers
from typing import ClassVar

import torch

from sewsnn.checks import constants, is_finite
from sewsnn.ops.neuron import no_forward_mode

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
    """Heaviside forward (x >= 0 fires, NaN does not), ``surrogate.gradient`` backward."""

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


_METHODS = ("gradient", "__call__")  # what the kernels have a form of


class Surrogate:
    """Base of the surrogates. ``parameter`` is the one number each has; it must be positive and finite. The name the
    constructor has for it (``alpha``, ``width``, ...) reads it, too. It stays what it is, since several nodes may share
    one surrogate: another number is another surrogate, ``node.surrogate_function = ATan(alpha=4)``.

    Raises:
        TypeError, ValueError: the parameter is not a positive, finite number.
        AttributeError: the parameter is assigned.
    """

    kind: ClassVar[int | None] = None  #: number of the compiled form; None: there is none
    parameter_name: ClassVar[str] = "alpha"

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        place = {name: next(i for i, c in enumerate(cls.__mro__) if name in vars(c)) for name in ("kind", *_METHODS)}
        if any(place[name] < place["kind"] for name in _METHODS):
            cls.kind = None  # the kernels have the formula of a class that this one is derived from

    def __init__(self, parameter: float = 1.0):
        name = f"{type(self).__name__}: {self.parameter_name}"
        if isinstance(parameter, bool) or not isinstance(parameter, numbers.Real):
            raise TypeError(f"{name} must be a number, got {type(parameter).__name__}")
        if not (is_finite(parameter) and parameter > 0):
            raise ValueError(f"{name} must be positive and finite, got {parameter}")
        (self.parameter,) = constants(parameter)

    def __setattr__(self, name: str, value):
        if self.kind is not None and "parameter" in self.__dict__:
            if name in ("parameter", self.parameter_name):
                new = f"{type(self).__name__}({self.parameter_name}=...)"
                raise AttributeError(
                    f"{name} of {self!r} cannot be changed, nodes may share it: assign a new one, {new}"
                )
            if name in _METHODS:
                raise AttributeError(f"{name} of {self!r} cannot be changed: derive a class with a {name} of its own")
        super().__setattr__(name, value)

    def __getattr__(self, name: str):  # asked for what is nowhere else
        if name == self.parameter_name and "parameter" in self.__dict__:
            return self.parameter
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """1 where x >= 0, else 0; its gradient is :meth:`gradient`."""
        return _Spike.apply(x, self)

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """The surrogate sigma'(x)."""
        raise NotImplementedError(f"{type(self).__name__} must define gradient(x)")

    def primitive(self, x: torch.Tensor) -> torch.Tensor:
        """A function whose derivative is :meth:`gradient`, 1/2 at x = 0."""
        raise NotImplementedError(f"{type(self).__name__} must define primitive(x)")

    def __eq__(self, other):
        return type(self) is type(other) and self.parameter == other.parameter

    def __hash__(self):
        return hash((type(self), self.parameter))

    def __repr__(self):
        return f"{type(self).__name__}({self.parameter_name}={self.parameter:g})"


class ATan(Surrogate):
    """sigma'(x) = alpha / (2 (1 + (pi alpha x / 2)^2)); the paper's, with alpha = 2 (Table S3: ArcTan)."""

    kind = 0

    def __init__(self, alpha: float = 2.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = math.pi * self.parameter / 2 * x
        return self.parameter / 2 / (1 + y * y)

    def primitive(self, x):
        return (math.pi * self.parameter / 2 * x).atan() / math.pi + 0.5


class Rectangular(Surrogate):
    """sigma'(x) = 1 / width for |x| < width / 2, else 0 (Table S3, with width = 1)."""

    kind = 1
    parameter_name = "width"

    def __init__(self, width: float = 1.0):
        super().__init__(width)

    def gradient(self, x):
        return (x.abs() < self.parameter / 2).to(x) * (1 / self.parameter)

    def primitive(self, x):
        return (x / self.parameter + 0.5).clamp(0, 1)


class Constant(Surrogate):
    """sigma'(x) = value (Table S3, with value = 1)."""

    kind = 2
    parameter_name = "value"

    def __init__(self, value: float = 1.0):
        super().__init__(value)

    def gradient(self, x):
        return torch.full_like(x, self.parameter)

    def primitive(self, x):
        return self.parameter * x + 0.5


class Sigmoid(Surrogate):
    """sigma'(x) = alpha p (1 - p), p = 1 / (1 + exp(-alpha x))."""

    kind = 3

    def __init__(self, alpha: float = 4.0):
        super().__init__(alpha)

    def gradient(self, x):
        e = (-(self.parameter * x).abs()).exp()
        return self.parameter * e / ((1 + e) * (1 + e))

    def primitive(self, x):
        return (self.parameter * x).sigmoid()


class PiecewiseQuadratic(Surrogate):
    """sigma'(x) = max(0, alpha - alpha^2 |x|)."""

    kind = 4

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def gradient(self, x):
        return (self.parameter - self.parameter**2 * x.abs()).clamp(min=0)

    def primitive(self, x):
        y = (self.parameter * x).clamp(-1, 1)
        return y - y * y.abs() / 2 + 0.5


class PiecewiseExp(Surrogate):
    """sigma'(x) = alpha / 2 exp(-alpha |x|)."""

    kind = 5

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def gradient(self, x):
        return self.parameter / 2 * (-(self.parameter * x.abs())).exp()

    def primitive(self, x):
        tail = (-(self.parameter * x.abs())).exp() / 2
        return torch.where(x < 0, tail, 1 - tail)


class SoftSign(Surrogate):
    """sigma'(x) = 1 / (2 alpha (1 / alpha + |x|)^2)."""

    kind = 6

    def __init__(self, alpha: float = 2.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = 1 / self.parameter + x.abs()
        return 1 / (2 * self.parameter * (y * y))

    def primitive(self, x):
        y = self.parameter * x
        return (y / (1 + y.abs()) + 1) / 2


class SuperSpike(Surrogate):
    """sigma'(x) = alpha / (1 + |x|)^2."""

    kind = 7

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = 1 + x.abs()
        return self.parameter / (y * y)

    def primitive(self, x):
        return self.parameter * x / (1 + x.abs()) + 0.5


class Erf(Surrogate):
    """sigma'(x) = alpha / sqrt(pi) exp(-(alpha x)^2)."""

    kind = 8

    def __init__(self, alpha: float = 2.0):
        super().__init__(alpha)

    def gradient(self, x):
        y = self.parameter * x
        return self.parameter / math.sqrt(math.pi) * (-(y * y)).exp()

    def primitive(self, x):
        return ((self.parameter * x).erf() + 1) / 2


class UnitATan(Surrogate):
    """sigma'(x) = (1 + (pi at)^2) / (1 + (pi x)^2), which is 1 at x = at and x = -at.

    With at = 1/2 and v_threshold = 1/2, Theta' is 1 for an input of 0 and for an input of 1: the 0/1-gradient
    experiment of the supplement (A.5), where sigma'(x) = (1 + pi^2 / 4) / (1 + (pi x)^2).
    """

    kind = 9
    parameter_name = "at"

    def __init__(self, at: float = 0.5):
        super().__init__(at)
        self._height = 1 + (math.pi * self.parameter) ** 2

    def gradient(self, x):
        y = math.pi * x
        return self._height / (1 + y * y)

    def primitive(self, x):
        return (math.pi * x).atan() * (self._height / math.pi) + 0.5
