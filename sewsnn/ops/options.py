"""The numbers that the ops of batch norm + neuron + connection take besides tensors."""

from typing import NamedTuple

from sewsnn.ops import spec as neuron
from sewsnn.ops.spec import NO_NEURON, NOTHING, NeuronSpec, check_integers  # noqa: F401

NONE, ADD, AND, IAND, ADD_BEFORE, SUM = 0, 1, 2, 3, 4, 5  # Connect in csrc/core/bn_params.h
CONNECTIONS = {None: NONE, "ADD": ADD, "AND": AND, "IAND": IAND}
#: number of arguments in an op's schema: eps, connect, T and the neuron
COUNT = 3 + neuron.COUNT


class Options(NamedTuple):
    """What an op computes. In an op's schema the arguments stand together; ``extra`` of the neuron comes last."""

    eps: float
    connect: int
    T: int  # 0: z has a time axis; else z is a still image that is shown T times
    spec: NeuronSpec | None  # None: no neuron

    @property
    def arguments(self) -> tuple:
        """The arguments in an op's schema."""
        return *self[:3], *(NOTHING if self.spec is None else self.spec.arguments)

    @property
    def tail(self) -> tuple:
        """The last argument of an op, where it is not the default."""
        return () if self.spec is None else self.spec.tail

    @property
    def numbers(self) -> tuple[float, ...]:
        """The options for the ops that take one list of numbers."""
        return *self[:3], *(_NOTHING if self.spec is None else self.spec.numbers)


_NOTHING = neuron.numbers_of(NOTHING)


def numbers_of(arguments: tuple, extra=()) -> tuple[float, ...]:
    """The numbers in place of the arguments of a schema and the neuron's further numbers."""
    return *arguments[:3], *neuron.numbers_of(arguments[3:], extra)


def from_numbers(numbers: list[float]) -> tuple[tuple, tuple]:
    """The arguments of a schema that :func:`numbers_of` has made numbers of, and the last argument where it is not the
    default.

    Raises:
        RuntimeError: a number has no meaning. (The compiled ops check the same.)
    """
    eps, connect, T, *rest = numbers
    check_integers(connect, T)
    arguments, extra = neuron.from_numbers(rest)
    return (eps, int(connect), int(T), *arguments), (list(extra),) if extra else ()
