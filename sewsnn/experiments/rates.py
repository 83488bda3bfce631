"""``sewsnn analyze rates``: firing rates of A^l and O^l in each block (Fig. S2), synaptic operations and energy."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sewsnn.analysis.blocks import BlockRate, block_rates, blocks_of
from sewsnn.analysis.firing import firing_rates
from sewsnn.analysis.operations import AC_PJ, MAC_PJ, Operations, count_operations
from sewsnn.errors import UserError
from sewsnn.experiments.forms import copied, network_in_words
from sewsnn.experiments.rate_figures import CONNECTIONS, SILENT, Run, add_block_rates
from sewsnn.experiments.report import Report, escaped
from sewsnn.experiments.sources import (
    Opened,
    as_user_error,
    calibrated,
    differ_in_connection,
    each,
    fresh,
    open_networks,
    test_batches,
    test_data_in_words,
    test_steps,
    weights_in_words,
)
from sewsnn.progress import watched
from sewsnn.train.step import autocast

SATURATED = 0.95  # a layer with a higher rate is named


class Rates(NamedTuple):
    """The rates of one network.

    Attributes:
        blocks: the rates of each block.
        layers: module name -> spikes per neuron and time-step, for every neuron layer.
        operations: parameters, MACs and synaptic operations.
    """

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
    about = [
        f"network: {each(network_in_words(o.config) for o in opened)}, T = {each(o.config.model.T for o in opened)}; "
        f"data: {each(map(test_data_in_words, opened))}",
        f"weights: {weights_in_words(source, opened, weights)}",
    ]
    with Report("rates", "Firing rates of the blocks (Fig. S2)", output, about) as report:
        measured = {one.name: _measure(one) for one in opened}
        if not any(rate for found in measured.values() for rate in found.layers.values()):
            raise UserError(
                f"no neuron of {', '.join(measured)} fires (data: {each(map(test_data_in_words, opened))}), so there "
                "are no rates to compare; train the network first, or check its thresholds and weights"
            )
        left_out = {path for one in opened for path in one.data.corrupt}
        if left_out:
            report.about.append(f"left out as damaged: {len(left_out)} samples")
        runs = {one.name: [Run(one.config.seed, measured[one.name].blocks)] for one in opened}
        add_block_rates(report, runs, compare=differ_in_connection(opened))
        _add_layers(report, measured)
        _add_energy(report, measured)
        return report.write(command)


def _opened(source: Sequence[str], overrides: Mapping[str, str], weights: str | None) -> list[Opened]:
    opened = open_networks(source, overrides, weights)
    first = opened[0]
    for one in opened:
        if not blocks_of(one.model):
            raise UserError(f"{one.config.model.name} has no residual blocks whose rates could be measured")
    if first.trained:
        return opened
    if not first.config.model.name.startswith("sew_"):
        return [calibrated(first)]
    found = []
    for connect_f in CONNECTIONS:
        config = copied(first.config)
        config.analysis, config.model.connect_f = first.config.analysis, connect_f
        found.append(calibrated(fresh(config, first.data))._replace(name=connect_f))
    return found


def measure_blocks(opened: Opened, title: str) -> list[BlockRate]:
    """Measures the rates of the blocks of a network on its test batches, with a progress bar.

    Args:
        opened: the network.
        title: its name in the progress bar.
    """
    with _measuring(opened):
        return block_rates(opened.model, _watched(opened, f"{title}, blocks"))


def _measure(opened: Opened) -> Rates:
    blocks = measure_blocks(opened, opened.name)
    with _measuring(opened):
        layers = firing_rates(opened.model, _watched(opened, f"{opened.name}, layers"))
        return Rates(blocks, layers, count_operations(opened.model, _watched(opened, f"{opened.name}, operations")))


@contextlib.contextmanager
def _measuring(opened: Opened) -> Iterator[None]:
    device = next(opened.model.parameters()).device
    with as_user_error(opened), autocast(device, opened.config.train.test_amp):
        yield


def _watched(opened: Opened, title: str) -> Iterator[Tensor]:
    return (x for x, _ in watched(test_batches(opened), title, test_steps(opened)))


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
    for name, found in ((escaped(name), found) for name, found in measured.items()):
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
                escaped(name),
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
    head = ("network", "mean rate of the layers", "MACs", "on real values", "synaptic operations", "energy")
    head += ("energy / ANN",)
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
