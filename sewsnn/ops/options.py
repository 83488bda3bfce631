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
