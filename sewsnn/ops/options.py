"""The numbers that the ops of batch norm + neuron + connection take besides tensors."""

from typing import NamedTuple

NO_NEURON = -1  # the `kind` of batch norm without a neuron
NONE, ADD, AND, IAND, ADD_BEFORE = 0, 1, 2, 3, 4  # Connect in csrc/core/bn_params.h
CONNECTIONS = {None: NONE, "ADD": ADD, "AND": AND, "IAND": IAND}


class Options(NamedTuple):
    """The arguments of the ops besides tensors, in the order of the ops."""

    eps: float
    connect: int
    T: int  # 0: z has a time axis; else z is a still image that is shown T times
    kind: int
    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    surrogate: int
    alpha: float
    detach_reset: bool


def numbers_of(options: Options | tuple) -> tuple[float, ...]:
    """The options as numbers, for the ops that take one list of numbers: ``v_reset`` becomes two of them, whether there
    is one and its value."""
    eps, connect, T, kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset = options
    hard, value = (False, 0.0) if v_reset is None else (True, v_reset)
    return eps, connect, T, kind, tau, decay_input, v_threshold, hard, value, surrogate, alpha, detach_reset


def from_numbers(numbers: list[float]) -> Options:
    """The options that :func:`numbers_of` has made numbers of.

    Raises:
        RuntimeError: a number has no meaning. (The compiled ops check the same.)
    """
    eps, connect, T, kind, tau, decay_input, v_threshold, hard, value, surrogate, alpha, detach_reset = numbers
    for number in (connect, T, kind, surrogate):
        if number % 1 != 0 or abs(number) >= 1 << 31:  # also NaN and infinite
            raise RuntimeError(f"connect, T, kind and surrogate must be integers of at most 32 bits, got {number}")
    check_flags(decay_input, hard, detach_reset)
    neuron = (int(kind), tau, bool(decay_input), v_threshold, value if hard else None, int(surrogate), alpha)
    return Options(eps, int(connect), int(T), *neuron, bool(detach_reset))


def check_flags(*numbers: float) -> None:
    """Raises RuntimeError if a number is neither 0 nor 1."""
    for number in numbers:
        if number not in (0, 1):
            raise RuntimeError(f"a flag must be 0 or 1, got {number}")
