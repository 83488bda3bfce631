"""The report of a conversion."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn


class Replaced(NamedTuple):
    """A neuron that sewsnn computes now.

    Attributes:
        name: its name in ``model.named_modules()``; ``""`` is the model itself.
        kind: its class.
        settings: its settings, as text.
        fused_with: name of the batch norm that runs in the same op, and the connection if the op includes it; ``""``:
            the neuron runs alone.
        reason: why it runs alone; with ``fused_with``: why it runs alone with its current settings, or ran alone in
            some calls. Default ``""``.
        calls: after :meth:`Report.refresh`, how often it was called, by what happened: the name of the batch norm in
            the same op, or ``"alone: "`` and the reason. Default None.
    """

    name: str
    kind: str
    settings: str
    fused_with: str
    reason: str = ""
    calls: dict[str, int] | None = None


class Left(NamedTuple):
    """A neuron of SpikingJelly that was not converted.

    Attributes:
        name: its name in ``model.named_modules()``; ``""`` is the model itself.
        kind: its class.
        reason: why it was not converted.
    """

    name: str
    kind: str
    reason: str


@dataclass
class Report:
    """The result of :func:`sewsnn.convert.from_spikingjelly`: which neurons it replaced, which it left, and why.

    ``len(report)`` is the number of replaced neurons; ``print(report)`` prints a table. Right after the conversion it
    tells what is known then. :meth:`refresh`, called after a batch, tells what really ran.

    Attributes:
        model: the converted model.
        replaced: one :class:`Replaced` per neuron that sewsnn computes now.
        left: one :class:`Left` per neuron that was not converted.
        converted_before: names of neurons that an earlier conversion replaced.
        poolings: names of the ``MaxPool2d`` modules that run as sewsnn's op.
    """

    model: nn.Module
    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    converted_before: list[str] = field(default_factory=list)
    poolings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.replaced)

    def __bool__(self) -> bool:
        return True  # a report that replaced nothing is still a report

    @property
    def fused(self) -> int:
        """Number of neurons that run in one op with the batch norm before them."""
        return sum(bool(entry.fused_with) for entry in self.replaced)

    def refresh(self) -> "Report":
        """Tells for each neuron what ran since the conversion, or since the last call of this method.

        It sets ``fused_with``, ``reason`` and ``calls`` of every neuron that was called.

        Returns:
            This report.

        Example:
            >>> report = from_spikingjelly(net)  # doctest: +SKIP
            >>> net(x)  # doctest: +SKIP
            >>> print(report.refresh())  # doctest: +SKIP
        """
        modules = dict(self.model.named_modules())
        for i, entry in enumerate(self.replaced):
            calls = modules[entry.name].__dict__.pop("_calls", None) if entry.name in modules else None
            if calls:
                self.replaced[i] = _after(entry, calls)
        return self

    def __str__(self) -> str:
        lines = [f"neurons replaced: {len(self.replaced)}, in one op with batch norm: {self.fused}"]
        lines += _table([(e.name, e.kind, e.settings, _how(e)) for e in self.replaced])
        if self.converted_before:
            lines.append(f"neurons that an earlier call converted: {len(self.converted_before)}")
        if self.poolings:
            lines.append(f"max poolings by sewsnn's op: {len(self.poolings)}")
        if self.left:
            lines.append(f"neurons not converted: {len(self.left)}")
            lines += _table(self.left)
        if not (self.replaced or self.converted_before or self.left):
            lines.append(
                f"{type(self.model).__name__} has no neurons of spikingjelly.activation_based or clock_driven in it"
            )
        return "\n".join(lines)


def _after(entry: Replaced, calls: Counter) -> Replaced:
    """The entry with what really ran."""
    joined = sorted({norm for norm, _ in calls if norm})
    alone = {reason: number for (norm, reason), number in calls.items() if not norm}
    number, reason = sum(calls.values()), "; ".join(alone)
    if joined and alone:
        reason = f"alone in {sum(alone.values())} of {number} calls: {reason}"
    counted = {norm: n for (norm, _), n in calls.items() if norm} | {f"alone: {r}": n for r, n in alone.items()}
    return entry._replace(fused_with=" or ".join(joined), reason=reason, calls=counted)


def _how(entry: Replaced) -> str:
    if not entry.fused_with:
        return f"alone: {entry.reason}"
    now = entry.reason if entry.calls else f"not now: {entry.reason}"
    return f"with {entry.fused_with}" + (f" ({now})" if entry.reason else "")


def _table(rows: list[tuple]) -> list[str]:
    rows = [(row[0] or "(the model)", *row[1:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line}".rstrip() for line in cells]
