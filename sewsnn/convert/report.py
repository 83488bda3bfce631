"""What a conversion did."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn


class Replaced(NamedTuple):
    """A neuron that sewsnn computes now."""

    name: str  # in model.named_modules(); "" is the model itself
    kind: str
    settings: str
    fused_with: str  # names of the batch norm before it and, where one op joins that too, the connection; "": alone
    reason: str = ""  # why it runs alone, or, with ``fused_with``, why it does as it is set now


class Left(NamedTuple):
    """A neuron of SpikingJelly that is as it was."""

    name: str
    kind: str
    reason: str


@dataclass
class Report:
    """What :func:`sewsnn.convert.from_spikingjelly` replaced in ``model`` and what it left and why.

    ``len(report)`` is the number of neurons replaced, ``print(report)`` shows a table.
    """

    model: nn.Module
    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    converted_before: list[str] = field(default_factory=list)  # names of neurons an earlier conversion replaced

    def __len__(self) -> int:
        return len(self.replaced)

    def __bool__(self) -> bool:
        return True  # a report of nothing is a report

    @property
    def fused(self) -> int:
        """Number of neurons that run in one op with the batch norm before them."""
        return sum(bool(entry.fused_with) for entry in self.replaced)

    def __str__(self) -> str:
        lines = [f"neurons replaced: {len(self.replaced)}, of them in one op with batch norm: {self.fused}"]
        lines += _table([(e.name, e.kind, e.settings, _how(e)) for e in self.replaced])
        if self.converted_before:
            lines.append(f"neurons that were sewsnn's already (converted before): {len(self.converted_before)}")
        if self.left:
            lines.append(f"neurons left as they are: {len(self.left)}")
            lines += _table(self.left)
        if not (self.replaced or self.converted_before or self.left):
            lines.append(f"{type(self.model).__name__} has no neurons of spikingjelly.activation_based in it")
        return "\n".join(lines)


def _how(entry: Replaced) -> str:
    if not entry.fused_with:
        return f"alone: {entry.reason}"
    return f"with {entry.fused_with}" + (f" (not now: {entry.reason})" if entry.reason else "")


def _table(rows: list[tuple]) -> list[str]:
    rows = [(row[0] or "(the model)", *row[1:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line}".rstrip() for line in cells]
