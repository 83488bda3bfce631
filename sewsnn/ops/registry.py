"""The neurons and surrogates of the compiled library, as the library lists them (csrc/neurons/registry.h).

Without a library both tables are empty, and everything runs on the torch backend.
"""

from typing import NamedTuple

from sewsnn.ops.load import NATIVE_ERROR, ask_library


class KindInfo(NamedTuple):
    """What the ops need to know of a kind of neurons.

    Attributes:
        number: the kind, as the ops take it.
        states: numbers of a neuron's state; the first is the membrane potential.
        learnt: rows of learnt parameters.
        extra: further numbers.
        per_channel: a learnt parameter may have one number for each channel.
        binary: spikes are 0 or 1.
        surrogate: backward uses the surrogate.
        uses_tau: tau must be at least 1.
        in_stem: the stem has this kind, too.
    """

    number: int
    states: int
    learnt: int
    extra: int
    per_channel: bool
    binary: bool
    surrogate: bool
    uses_tau: bool
    in_stem: bool


def _read() -> tuple[dict[str, KindInfo], dict[str, int]]:
    if NATIVE_ERROR is not None:
        return {}, {}
    _, text = ask_library("sewsnn_registry")
    kinds, surrogates = (part.splitlines() for part in text.strip().split("\n\n"))
    rows = [line.split() for line in kinds]
    infos = {name: KindInfo(*map(int, numbers[:4]), *(flag == "1" for flag in numbers[4:])) for name, *numbers in rows}
    return infos, {name: i for i, name in enumerate(surrogates)}


#: the neurons of the library by name, and the numbers of its surrogates by name
KINDS, SURROGATES = _read()
#: the neurons by number
BY_NUMBER = {info.number: info for info in KINDS.values()}
