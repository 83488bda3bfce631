"""What a layer of neurons computes, told once: :class:`NeuronSpec`.

Public functions and nodes take the numbers of a neuron and make a specification of them. Layers and ops pass it on, as
it is or in one of two forms: :attr:`NeuronSpec.arguments`, in the order of the ops' schemas
(csrc/core/neuron_numbers.h), and :attr:`NeuronSpec.numbers`, for the ops that take one list of numbers.
"""

import functools
import math
import numbers
from dataclasses import dataclass, field, fields

import torch

from sewsnn.ops.reference import NEURONS
from sewsnn.ops.registry import KINDS

NO_NEURON = -1  # the kind of batch norm without a neuron
_MOST = (2 - 2**-23) * 2.0**127  # the largest number of float32


def check_number(name: str, value) -> None:
    """Raises TypeError or ValueError unless ``value`` is a finite number, also in float32."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not abs(value) <= _MOST:
        raise ValueError(f"{name} must be finite{' in float32' if abs(value) < math.inf else ''}, got {value}")


def flag(name: str, value) -> bool:
    """Returns a choice as a bool; raises TypeError unless it is True, False, 1 or 0."""
    if value is True or value is False:
        return value
    if not isinstance(value, numbers.Integral) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_tau(tau, name: str = "tau") -> None:
    """Raises TypeError or ValueError unless the time constant ``tau`` is a finite number of at least 1."""
    check_number(name, tau)
    if tau < 1:
        raise ValueError(f"{name} must be at least 1, got {tau}")


def constant(value) -> float:
    """Converts a number to the float that the ops take.

    While torch.compile traces, a number that changed between calls is a symbol, and ops take no symbols. ``repr`` makes
    the symbol a constant, so torch.compile makes one graph for each value.
    """
    return float(f"{value!r}") if torch.compiler.is_compiling() else float(value)


def _number(name: str, value) -> float:
    if type(value) is float and -_MOST <= value <= _MOST and not torch.compiler.is_compiling():
        return value
    check_number(name, value)
    return constant(value)


def _number_or_none(name: str, value) -> float | None:
    return None if value is None else _number(name, value)


def _tau(name: str, value) -> float:
    number = _number(name, value)
    if number < 1:
        check_tau(value, name)
    return number


def _setting(default, check):
    """A field of a dataclass with its check, a function of its name and value."""
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True)
class NeuronSpec:
    """A neuron with its numbers, checked.

    Args:
        kind: its name in :data:`sewsnn.ops.reference.NEURONS`.
        surrogate: derivative of the spike in backward: one of :mod:`sewsnn.surrogate`, or any function of
            h - v_threshold (then the torch backend runs). ILIF: the number of spikes as a function of h / v_threshold.
        tau: membrane time constant in time-steps, at least 1 where the kind uses it. Default 2.0.
        decay_input: LIF, PLIF and LearntLIF scale the input by 1 / tau as well. Default True.
        v_threshold: firing threshold. Default 1.0.
        v_reset: membrane potential after a spike (hard reset). Default 0.0. None: soft reset.
        detach_reset: treat the spike inside the reset as a constant in backward. Default True.
        extra: the kind's further numbers, in the order of its class in :mod:`sewsnn.ops.reference`. Default none.

    Raises:
        TypeError, ValueError: a value is wrong; the message names it.
    """

    kind: str
    surrogate: object
    tau: float = _setting(2.0, _tau)
    decay_input: bool = _setting(True, flag)
    v_threshold: float = _setting(1.0, _number)
    v_reset: float | None = _setting(0.0, _number_or_none)
    detach_reset: bool = _setting(True, flag)
    extra: tuple[float, ...] = ()
    #: why the compiled library cannot compute this neuron with a surrogate of its own; None if it can
    missing: str | None = field(init=False, repr=False, compare=False)
    #: the neuron among the arguments of an op, in the order of the schemas, where the compiled library has it
    arguments: tuple | None = field(init=False, repr=False, compare=False)
    #: the last argument of an op, ``extra``, where it is not the default
    tail: tuple = field(init=False, repr=False, compare=False)
    #: the neuron for the ops that take one list of numbers
    numbers: tuple[float, ...] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        model = NEURONS.get(self.kind)
        if model is None:
            raise ValueError(f"unknown neuron {self.kind!r}; there are {', '.join(NEURONS)}")
        if len(self.extra) != len(model.extra):
            raise ValueError(f"{self.kind} has the numbers {model.extra}, got {self.extra}")
        surrogate = self.surrogate
        if not callable(surrogate):
            raise TypeError(
                f"surrogate_function must be one of sewsnn.surrogate, or callable on h - v_threshold, "
                f"got {type(surrogate).__name__}"
            )
        keep = functools.partial(object.__setattr__, self)
        if not model.uses_tau:
            keep("tau", 2.0)
        for name, check in _CHECKS:
            given = self.__dict__[name]
            checked = check(name, given)
            if checked is not given:
                keep(name, checked)
        extra = tuple(_number(name, number) for name, number in zip(model.extra, self.extra, strict=True))
        missing, arguments, form = None, None, getattr(surrogate, "kind", None)
        if self.kind not in KINDS:
            missing = f"the compiled library has no neuron {self.kind}"
        elif not (isinstance(form, int) if model.surrogate else form == self.kind):
            missing = f"{type(surrogate).__name__} has no compiled form for the neuron {self.kind}"
        else:
            fire = (form, surrogate.parameter) if model.surrogate else (0, 1.0)
            settings = (self.tau, self.decay_input, self.v_threshold, self.v_reset)
            arguments = (KINDS[self.kind].number, *settings, *fire, self.detach_reset)
        keep("extra", extra)
        keep("missing", missing)
        keep("arguments", arguments)
        keep("tail", (list(extra),) if extra else ())
        keep("numbers", None if arguments is None else numbers_of(arguments, extra))


_CHECKS = tuple((item.name, item.metadata["check"]) for item in fields(NeuronSpec) if item.metadata)

#: the arguments of the ops for batch norm without a neuron
NOTHING = (NO_NEURON, 2.0, True, 1.0, 0.0, 0, 2.0, True)
COUNT = len(NOTHING)  # number of arguments that describe a neuron
_RESET = 4  # the argument that may be None
_BEFORE, _AFTER = (int, float, bool, float), (int, float, bool)  # the types of the others


def numbers_of(arguments: tuple, extra=()) -> tuple[float, ...]:
    """The numbers in place of :attr:`NeuronSpec.arguments`: ``v_reset`` becomes two of them, whether there is one and
    its value; the further numbers follow with their count."""
    v_reset = arguments[_RESET]
    hard, value = (False, 0.0) if v_reset is None else (True, v_reset)
    return *arguments[:_RESET], hard, value, *arguments[_RESET + 1 :], len(extra), *extra


def from_numbers(numbers: list[float]) -> tuple[tuple, tuple[float, ...]]:
    """The arguments and the further numbers that :func:`numbers_of` has made one list of.

    Raises:
        RuntimeError: a number has no meaning. (The compiled ops check the same.)
    """
    if len(numbers) < COUNT + 2:
        raise RuntimeError(f"there must be at least {COUNT + 2} numbers of a neuron, got {len(numbers)}")
    before, (hard, value), rest = numbers[:_RESET], numbers[_RESET : _RESET + 2], numbers[_RESET + 2 :]
    after, (count, *extra) = rest[: len(_AFTER)], rest[len(_AFTER) :]
    check_integers(count)
    check_flags(hard)
    if count != len(extra):
        raise RuntimeError(f"there must be {int(count)} further numbers, got {len(extra)}")
    return (*_typed(_BEFORE, before), value if hard else None, *_typed(_AFTER, after)), tuple(extra)


def _typed(types: tuple, numbers: list[float]) -> list:
    for kind, number in zip(types, numbers, strict=True):
        if kind is int:
            check_integers(number)
        elif kind is bool:
            check_flags(number)
    return [kind(number) for kind, number in zip(types, numbers, strict=True)]


def check_integers(*values: float) -> None:
    """Raises RuntimeError if a number is no integer of at most 32 bits."""
    for value in values:
        if value % 1 != 0 or abs(value) >= 1 << 31:  # also NaN and infinite
            raise RuntimeError(f"connect, T, kind and surrogate must be integers of at most 32 bits, got {value}")


def check_flags(*values: float) -> None:
    """Raises RuntimeError if a number is neither 0 nor 1."""
    for value in values:
        if value not in (0, 1):
            raise RuntimeError(f"a flag must be 0 or 1, got {value}")
