"""Firing rates of the blocks of one or more networks, over seeds: figure, data and the statements of A.3."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from sewsnn.analysis.blocks import BlockRate
from sewsnn.errors import one_line
from sewsnn.experiments.drawing import MARKS, PAGE, drawing, line_with_band
from sewsnn.experiments.report import Report

CONNECTIONS = ("ADD", "AND", "IAND")
SILENT = 0.001  # a layer with a lower rate is named
_COLUMNS = {
    "network": "the network",
    "seed": "seed of the run",
    "block": "index l of the block, from 1",
    "name": "name of the block in the network",
    "S": "spikes per neuron and time-step of the block's input S^l",
    "A": "spikes per neuron and time-step of A^l; empty for Spiking blocks, where A^l is O^l",
    "O": "spikes per neuron and time-step of O^l",
    "active": "share of the values of O^l that are not 0",
}


class Run(NamedTuple):
    """The block rates of one network: those of one seed."""

    seed: int
    blocks: list[BlockRate]


def add_block_rates(report: Report, measured: Mapping[str, Sequence[Run]], compare: bool) -> None:
    """Adds Fig. S2, its data and what is seen in it.

    Args:
        report: the report.
        measured: name of the network -> its rates, one entry per seed.
        compare: test the statements of A.3, if there are networks with ADD, AND and IAND.
    """
    with drawing(1, 2, width=PAGE, height=2.2) as (figure, axes):
        for i, (name, found) in enumerate(measured.items()):
            mark, other = MARKS[i % len(MARKS)], MARKS[(i + i // len(MARKS)) % len(MARKS)]
            mark = mark._replace(marker=other.marker)  # from the eighth network on, a colour has another marker
            if found[0].blocks[0].A is not None:
                _draw(axes[0, 0], [[block.A for block in one.blocks] for one in found], mark, _label(name))
            _draw(axes[0, 1], [[block.O for block in one.blocks] for one in found], mark, _label(name))
        for panel, letter in zip(axes[0], ("A", "O"), strict=True):
            panel.set_xlabel("block $l$")
            panel.set_ylabel(f"rate of ${letter}^l$ / spikes per\nneuron and time-step")
            if letter == "O":
                panel.set_yscale("symlog", linthresh=SILENT)
            panel.set_ylim(bottom=0)
            panel.xaxis.get_major_locator().set_params(integer=True)
            if panel.lines:
                panel.legend()
        if not axes[0, 0].lines:
            axes[0, 0].text(0.5, 0.5, "a Spiking block has no $A^l$", transform=axes[0, 0].transAxes, ha="center")
        bands = " Lines: means over the seeds; bands: from the least to the largest value."
        report.figure(
            "blocks",
            figure,
            "Firing rates per block. Left: A^l, the spikes of the last neuron of the branch. Right: O^l, the output of "
            "the block before a pooling, which ADD can raise above 1; this axis is logarithmic above "
            f"{SILENT} and linear below. Means over the test samples."
            + (bands if any(len(found) > 1 for found in measured.values()) else ""),
        )
    rows = [
        {"network": name, "seed": one.seed, "block": i + 1, "name": block.name, "S": block.S,
         "A": block.A, "O": block.O, "active": block.active}
        for name, found in measured.items()
        for one in found
        for i, block in enumerate(one.blocks)
    ]  # fmt: skip
    report.table("blocks", _COLUMNS, rows)
    if compare and measured.keys() >= set(CONNECTIONS):
        _compare(report, measured)


def _draw(panel, rates: Sequence[Sequence[float]], mark, label: str) -> None:
    """Draws the mean over the runs, and a band from the least to the largest value."""
    of_block = list(zip(*rates, strict=True))
    values = ([f(block) for block in of_block] for f in (fmean, min, max))
    every = max(1, len(of_block) // 12)
    line_with_band(panel, range(1, len(of_block) + 1), *values, mark, label=label, markevery=every)


def _label(name: str) -> str:
    """The name for a legend of matplotlib, which reads $ as mathematics and leaves out names that begin with _."""
    label = one_line(name, 40).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _compare(report: Report, measured: Mapping[str, Sequence[Run]]) -> None:
    """The statements of A.3 about ADD, AND and IAND. Each must hold for every seed."""
    O = {name: [[b.O for b in one.blocks] for one in measured[name]] for name in CONNECTIONS}  # noqa: E741
    A = {name: [[b.A for b in one.blocks] for one in measured[name]] for name in CONNECTIONS}
    if not any(rate for runs in O.values() for rates in runs for rate in rates):
        report.say("No neuron in the blocks of these networks fires, so that their rates cannot be compared.")
        return

    def check(claim: str, rates: Mapping[str, Sequence[Sequence[float]]], holds, evidence: str) -> None:
        answers = [holds(*one) for one in zip(*(rates[name] for name in CONNECTIONS), strict=False)]
        seeds = f"so it is for {sum(answers)} of {len(answers)} seeds; " if len(answers) > 1 else ""
        report.find(claim, all(answers), seeds + evidence)

    def lowest(add, and_, iand) -> bool:
        return all(a <= min(b, c) for a, b, c in zip(and_, add, iand, strict=True))

    def words(rates, value) -> str:
        return ", ".join(f"{name} {fmean(map(value, rates[name])):.4g}" for name in CONNECTIONS)

    for name, rates, panel in (("A^l", A, "a"), ("O^l", O, "b")):
        blocks = [
            i + 1
            for i in range(len(O["AND"][0]))
            if any(a[i] > min(b[i], c[i]) for b, a, c in zip(*(rates[k] for k in CONNECTIONS), strict=False))
        ]
        where = f"; in block {', '.join(map(str, blocks))} another network has a lower rate" if blocks else ""
        check(
            f"The blocks of the AND network have the lowest rates of {name} (A.3, Fig. S2{panel}).",
            rates,
            lowest,
            f"mean rate over the blocks: {words(rates, fmean)}{where}.",
        )
    check(
        "The AND network becomes silent in its last blocks (silence problem).",
        O,
        lambda add, and_, iand: and_[-1] < 0.1 * min(add[-1], iand[-1]) or and_[-1] < SILENT,
        f"rate of O^l in the last block: {words(O, lambda rates: rates[-1])}; AND has "
        f"{fmean(rates[0] for rates in O['AND']):.4g} in block 1 of {len(O['AND'][0])}.",
    )
    check(
        "The mean rate of O^l of the IAND network is between those of AND and ADD.",
        O,
        lambda add, and_, iand: fmean(and_) <= fmean(iand) <= fmean(add),
        f"mean rate over the blocks: {words(O, fmean)}.",
    )
