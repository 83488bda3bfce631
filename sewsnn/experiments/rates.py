"""``sewsnn analyze rates``: firing rates of A^l and O^l in each block (Fig. S2), synaptic operations and energy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sewsnn.analysis.blocks import BlockRate, block_rates, blocks_of
from sewsnn.analysis.calibration import calibrate
from sewsnn.analysis.firing import firing_rates
from sewsnn.analysis.operations import AC_PJ, MAC_PJ, Operations, count_operations
from sewsnn.errors import UserError
from sewsnn.experiments.drawing import MARKS, PAGE, drawing
from sewsnn.experiments.forms import copied
from sewsnn.experiments.report import Report
from sewsnn.experiments.sources import Opened, fresh, open_networks, test_batches, test_steps, train_batches
from sewsnn.progress import watched
from sewsnn.train.step import autocast

SILENT, SATURATED = 0.001, 0.95  # rates below and above which a layer is named
_CALIBRATED = 8  # training batches that give the statistics of a fresh network
_CONNECTIONS = ("ADD", "AND", "IAND")


class Rates(NamedTuple):
    """The rates of one network.

    Attributes:
        opened: the network.
        blocks: the rates of each block.
        layers: module name -> spikes per neuron and time-step, for every neuron layer.
        operations: parameters, MACs and synaptic operations.
    """

    opened: Opened
    blocks: list[BlockRate]
    layers: dict[str, float]
    operations: Operations


def run(
    source: Sequence[str], overrides: Mapping[str, str], output: Path, *, weights: str | None = None, command: str = ""
) -> Path:
    """Measures the rates of one or several networks on the test set and writes the report.

    Args:
        source: a configuration file, or folders of runs. A configuration without ``weights`` gives fresh networks, of a
            SEW network one for each of ADD, AND and IAND.
        overrides: configuration keys and values, as on the command line.
        output: the folder for the report.
        weights: a checkpoint for a configuration file.
        command: the command line, for the report.

    Returns:
        The path of the report.

    Raises:
        UserError: a setting or a file is wrong, the network has no blocks, or no neuron of any network fires.

    Source: supplement, A.3 and Fig. S2.
    """
    opened = _opened(source, overrides, weights)
    first = opened[0]
    about = [
        f"network: {', '.join(dict.fromkeys(o.config.model.name for o in opened))}, T = {first.config.model.T}; "
        f"data: test set of {first.config.data.name}",
        "weights: " + ("of the sources" if first.trained else _fresh_in_words()),
    ]
    with Report("rates", "Firing rates of the blocks (Fig. S2)", output, about) as report:
        measured = {}
        for one in opened:
            measured[one.name] = measure_rates(one, one.name)
        if not any(rate for found in measured.values() for rate in found.layers.values()):
            raise UserError(
                f"no neuron of {', '.join(measured)} fires on the test set of {first.config.data.name}, so there are "
                "no rates to compare; train the network first, or check its thresholds and weights"
            )
        add_block_rates(report, measured)
        _add_layers(report, measured)
        _add_energy(report, measured)
        return report.write(command)


def _fresh_in_words() -> str:
    return f"random; batch norm has the statistics of {_CALIBRATED} training batches"


def _opened(source: Sequence[str], overrides: Mapping[str, str], weights: str | None) -> list[Opened]:
    opened = open_networks(source, overrides, weights)
    names = [str(Path(path)) if len(opened) > 1 else one.name for path, one in zip(source, opened, strict=True)]
    if len(opened) > 1:
        connections = [one.config.model.connect_f for one in opened]
        sew = all(one.config.model.name.startswith("sew_") for one in opened)
        names = connections if sew and len(set(connections)) == len(opened) else [Path(name).name for name in names]
        if len(set(names)) < len(names):
            names = list(map(str, source))
    opened = [one._replace(name=name) for one, name in zip(opened, names, strict=True)]
    first = opened[0]
    for one in opened:
        if not blocks_of(one.model):
            raise UserError(f"{one.config.model.name} has no residual blocks whose rates could be measured")
    if first.trained:
        return opened
    if not first.config.model.name.startswith("sew_"):
        return [_calibrated(first)]
    found = []
    for connect_f in _CONNECTIONS:
        config = copied(first.config)
        config.analysis, config.model.connect_f = first.config.analysis, connect_f
        found.append(_calibrated(fresh(config, first.data))._replace(name=connect_f))
    return found


def _calibrated(opened: Opened) -> Opened:
    calibrate(opened.model, (x for x, _ in train_batches(opened, _CALIBRATED)))
    return opened


def measure_rates(opened: Opened, title: str) -> Rates:
    """Measures the rates of a network on its test batches, with a progress bar.

    Args:
        opened: the network.
        title: its name in the progress bar.
    """
    device = next(opened.model.parameters()).device

    def batches(what):
        return (x for x, _ in watched(test_batches(opened), f"{title}, {what}", test_steps(opened)))

    with autocast(device, opened.config.train.test_amp):
        blocks = block_rates(opened.model, batches("blocks"))
        layers = firing_rates(opened.model, batches("layers"))
        operations = count_operations(opened.model, batches("operations"))
    return Rates(opened, blocks, layers, operations)


def add_block_rates(report: Report, measured: Mapping[str, Rates]) -> None:
    """Adds Fig. S2, its data and what is seen in it.

    Args:
        report: the report.
        measured: name of the network -> its rates.
    """
    with drawing(1, 2, width=PAGE, height=2.2) as (figure, axes):
        for (name, found), mark in zip(measured.items(), MARKS * len(measured), strict=False):
            index = range(1, len(found.blocks) + 1)
            every = max(1, len(found.blocks) // 12)
            if found.blocks[0].A is not None:
                a = [block.A for block in found.blocks]
                axes[0, 0].plot(index, a, **mark.line(label=name, markevery=every))
            o = [block.O for block in found.blocks]
            axes[0, 1].plot(index, o, **mark.line(label=name, markevery=every))
        for panel, letter in zip(axes[0], ("A", "O"), strict=True):
            panel.set_xlabel("block l")
            panel.set_ylabel(f"rate of ${letter}^l$ / spikes per\nneuron and time-step")
            panel.set_ylim(bottom=0)
            panel.xaxis.get_major_locator().set_params(integer=True)
            if panel.lines:
                panel.legend()
        if not axes[0, 0].lines:
            axes[0, 0].text(0.5, 0.5, "a Spiking block has no $A^l$", transform=axes[0, 0].transAxes, ha="center")
        report.figure(
            "blocks",
            figure,
            "Firing rates per block. Left: A^l, the spikes of the last neuron of the branch. Right: O^l, the output of "
            "the block before a pooling, which ADD can raise above 1. Means over the test set.",
        )
    rows = [
        {"network": name, "block": i + 1, "name": block.name, "S": block.S, "A": block.A, "O": block.O,
         "active": block.active}
        for name, found in measured.items()
        for i, block in enumerate(found.blocks)
    ]  # fmt: skip
    report.table("blocks", _BLOCK_COLUMNS, rows)
    if {"ADD", "AND", "IAND"} <= measured.keys():
        _compare(report, measured)


_BLOCK_COLUMNS = {
    "network": "the network",
    "block": "index l of the block, from 1",
    "name": "name of the block in the network",
    "S": "spikes per neuron and time-step of the block's input S^l",
    "A": "spikes per neuron and time-step of A^l; empty for Spiking blocks, where A^l is O^l",
    "O": "spikes per neuron and time-step of O^l",
    "active": "share of the values of O^l that are not 0",
}


def _compare(report: Report, measured: Mapping[str, Rates]) -> None:
    """The statements of A.3 about ADD, AND and IAND."""
    O = {name: [b.O for b in measured[name].blocks] for name in _CONNECTIONS}  # noqa: E741
    mean = {name: sum(rates) / len(rates) for name, rates in O.items()}
    last = {name: rates[-1] for name, rates in O.items()}
    numbers = ", ".join(f"{name} {mean[name]:.4f}" for name in _CONNECTIONS)
    ends = ", ".join(f"{name} {last[name]:.4g}" for name in _CONNECTIONS)
    lowest = sum(O["AND"][i] <= min(O["ADD"][i], O["IAND"][i]) for i in range(len(O["AND"])))
    report.find(
        "The blocks of the AND network have the lowest firing rates (A.3).",
        lowest == len(O["AND"]),
        f"AND has the lowest rate of O^l in {lowest} of {len(O['AND'])} blocks; mean over the blocks: {numbers}.",
    )
    report.find(
        "The AND network becomes silent in its last blocks (silence problem).",
        last["AND"] < 0.1 * min(last["ADD"], last["IAND"]) or last["AND"] < SILENT,
        f"rate of the last block's O^l: {ends}; the network has {len(O['AND'])} blocks, and the rate falls with each.",
    )
    report.find(
        "The rates of the IAND network are between those of AND and ADD.",
        mean["AND"] <= mean["IAND"] <= mean["ADD"],
        f"mean rate of O^l: {numbers}.",
    )


def _add_layers(report: Report, measured: Mapping[str, Rates]) -> None:
    rows = [
        {"network": name, "layer": layer, "rate": rate, "state": _state(rate)}
        for name, found in measured.items()
        for layer, rate in found.layers.items()
    ]
    columns = {
        "network": "the network",
        "layer": "name of the neuron layer in the network",
        "rate": "spikes per neuron and time-step",
        "state": f"silent: rate below {SILENT}; saturated: rate above {SATURATED}; else empty",
    }
    report.table("layers", columns, rows)
    for name, found in measured.items():
        for state in ("silent", "saturated"):
            layers = [layer for layer, rate in found.layers.items() if _state(rate) == state]
            limit = f"below {SILENT}" if state == "silent" else f"above {SATURATED}"
            if layers:
                listed = ", ".join(f"`{layer}` ({found.layers[layer]:.2g})" for layer in layers)
                share = f"{len(layers)} of {len(found.layers)} neuron layers are {state}"
                report.say(f"**{name}**: {share} (rate {limit}): {listed}.")
            else:
                report.say(f"**{name}**: no neuron layer is {state} (rate {limit}).")


def _state(rate: float) -> str:
    return "silent" if rate < SILENT else "saturated" if rate > SATURATED else ""


def _add_energy(report: Report, measured: Mapping[str, Rates]) -> None:
    rows, shown = [], []
    for name, found in measured.items():
        total = found.operations
        mean = sum(found.layers.values()) / len(found.layers)
        ann = MAC_PJ * total.macs
        shown.append(
            (
                name,
                f"{mean:.4f}",
                f"{total.macs_per_image / 1e6:.2f} M",
                f"{total.real_macs_per_image / 1e6:.3f} M",
                f"{total.synops / 1e6:.3f} M",
                f"{total.energy_pj / 1e6:.3f} µJ",
                f"{total.energy_pj / ann:.2f}" if ann else "",
            )
        )
        rows += [
            {"network": name, "layer": layer.name, "kind": layer.kind, "macs": layer.macs, "runs": layer.runs,
             "input_rate": layer.input_rate, "synops": layer.synops,
             "energy_pj": AC_PJ * layer.synops if layer.spike_input else MAC_PJ * layer.macs * layer.runs}
            for layer in total.layers
            if layer.macs
        ]  # fmt: skip
    head = (
        "network",
        "mean rate of the layers",
        "MACs",
        "on real values",
        "synaptic operations",
        "energy",
        "energy / ANN",
    )
    report.show(head, shown)
    report.say(
        f"All numbers are per image over all time-steps. Energy = {MAC_PJ} pJ x MACs on real values + {AC_PJ} pJ x "
        "synaptic operations: 32-bit floating-point arithmetic at 45 nm, without memory access (M. Horowitz, "
        "Computing's energy problem, ISSCC 2014). A synaptic operation is one addition, for one spike and one neuron "
        "that reads it. energy / ANN compares it with the same network run once on real values; a number below 1 needs "
        "a low rate and a small T."
    )
    columns = {
        "network": "the network",
        "layer": "name of the convolution or linear layer",
        "kind": "class of the layer",
        "macs": "multiply-accumulates of one run of the layer",
        "runs": "runs per image: T, or 1 for a layer that reads a still image",
        "input_rate": "spikes per input and run; empty: the input is not spikes",
        "synops": "synaptic operations per image over all time-steps; empty: the input is not spikes",
        "energy_pj": f"estimated energy per image in pJ: {AC_PJ} synops, or {MAC_PJ} macs x runs on real values",
    }
    report.table("operations", columns, rows)
