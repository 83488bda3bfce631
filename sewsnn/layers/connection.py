"""The connection of a block's branch with its shortcut."""

from typing import NamedTuple

from torch import Tensor

from sewsnn.ops import options
from sewsnn.ops.reference import CONNECT


class Connection(NamedTuple):
    """How the output A of a neuron, or its input y, is connected with the shortcut S. :func:`connection_of` makes it.

    Attributes:
        f: None: no connection; ``"ADD"``, ``"AND"`` or ``"IAND"`` (main paper, Table 1).
        before: the shortcut is added before the neuron.
        number: the connection as the ops take it.
    """

    f: str | None
    before: bool
    number: int

    @property
    def returns_sum(self) -> bool:
        """Whether the sum y + S is a second result (the membrane shortcut)."""
        return self.number == options.SUM

    def after_neuron(self, a: Tensor, shortcut: Tensor | None) -> Tensor:
        """g(A, S), or A where nothing is connected after the neuron."""
        return a if self.f is None or self.before else CONNECT[self.f](a, shortcut)


NOT_CONNECTED = Connection(None, False, options.NONE)
_CONNECTIONS = {(f, False): Connection(f, False, number) for f, number in options.CONNECTIONS.items()}
_CONNECTIONS["ADD", True] = Connection("ADD", True, options.ADD_BEFORE)
_SUM = Connection("ADD", True, options.SUM)


def connection_of(connect_f: str | None, connect_before: bool = False, return_sum: bool = False) -> Connection:
    """The connection that the arguments ``connect_f``, ``connect_before`` and ``return_sum`` describe.

    Raises:
        ValueError: they describe none.
    """
    found = _CONNECTIONS.get((connect_f, bool(connect_before)))
    if return_sum:
        if found is None or found.number != options.ADD_BEFORE:
            raise ValueError(
                "return_sum returns the sum of batch norm and shortcut: it needs connect_f='ADD' and "
                f"connect_before=True, got {connect_f!r} and {connect_before!r}"
            )
        return _SUM
    if found is not None:
        return found
    if connect_f is not None and connect_f not in CONNECT:
        raise ValueError(f"connect_f must be None or one of {', '.join(map(repr, CONNECT))}, got {connect_f!r}")
    raise ValueError(f"connect_before adds the shortcut: connect_f must be 'ADD', got {connect_f!r}")
