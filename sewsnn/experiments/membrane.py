"""``sewsnn analyze membrane``: membrane potentials and spikes of some neurons over time, and raster plots."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sewsnn.analysis.potentials import check_layers, neuron_layers, record
from sewsnn.analysis.watching import evaluating
from sewsnn.data.source import identity
from sewsnn.errors import UserError
from sewsnn.experiments.forms import data_in_words, network_in_words
from sewsnn.experiments.report import Report, percent
from sewsnn.experiments.sources import Opened, as_user_error, calibrated, open_networks, weights_in_words
from sewsnn.experiments.traces import Layer, Place, draw_potentials, draw_raster
from sewsnn.train.prefetch import Prefetch

_LAYERS = 4  # layers that are drawn by default


def run(
    source: str,
    overrides: Mapping[str, str],
    output: Path,
    *,
    weights: str | None = None,
    layers: str | None = None,
    neurons: int = 3,
    sample: int = 0,
    command: str = "",
) -> Path:
    """Records some neuron layers for one test sample and writes the report.

    Args:
        source: a configuration file or the folder of a run. A configuration without ``weights`` gives a fresh network,
            whose batch norms take the statistics of 8 training batches.
        overrides: configuration keys and values, as on the command line.
        output: the folder for the report.
        weights: a checkpoint for a configuration file. Default None.
        layers: names of neuron layers, separated by commas. Default None: up to 4, from the first to the last.
        neurons: number of neurons of each layer whose potential is drawn. Default 3.
        sample: index of the test sample. Default 0.
        command: the command line, for the report. Default: not named.

    Returns:
        The path of the report.

    Raises:
        UserError: a setting or a file is wrong, there is no such layer or sample, or no neuron of the layers fires.
    """
    opened = open_networks(source, overrides, weights)[0]
    names = _names(opened.model, layers)
    x, label = _sample(opened, sample)
    what = f"test sample {sample} of {data_in_words(opened.config)}, {_class(opened, label)}"
    origin = weights_in_words(source, [opened], weights)
    about = [f"network: {network_in_words(opened.config)}, T = {opened.config.model.T}", f"data: {what}"]
    with Report("membrane", "Membrane potentials and spikes over time", output, about) as report:
        if not opened.trained:
            calibrated(opened)
        with as_user_error(opened):
            recordings = record(opened.model, x, names)
        answer = f"; {_answer(opened, x, label)}" if opened.trained else ""
        report.about.append(f"weights: {origin}{answer}")
        found = [Layer(name, recordings[name]) for name in names]
        if not any(layer.steps.any() for layer in found):
            raise UserError(
                f"no neuron of {', '.join(names)} fired for test sample {sample}, so there is nothing to draw; choose "
                "other layers or another sample, or train the network first"
            )
        chosen = {layer.name: layer.chosen(neurons) for layer in found}
        _say_what(report, found, chosen)
        for layer in found:
            draw_potentials(report, layer, chosen[layer.name], what)
            draw_raster(report, layer, what)
        _add_data(report, found, chosen)
        return report.write(command)


def _names(model: nn.Module, layers: str | None) -> list[str]:
    if layers is None:
        shortcuts = {id(module.downsample_sn) for module in model.modules() if hasattr(module, "downsample_sn")}
        nodes = [name for name, node in neuron_layers(model).items() if id(node) not in shortcuts]
        number = min(_LAYERS, len(nodes))
        if not number:
            raise UserError("the network has no neuron layers")
        return [nodes[round(i * (len(nodes) - 1) / max(number - 1, 1))] for i in range(number)]
    names = list(dict.fromkeys(name.strip() for name in layers.split(",")))
    if "" in names:
        raise UserError(f"--layers must be names separated by commas, got {layers!r}")
    try:
        check_layers(model, names)
    except ValueError as error:
        raise UserError(f"--layers: {error}") from None
    return names


def _sample(opened: Opened, index: int) -> tuple[Tensor, int]:
    """The input ``[1, C, H, W]`` or ``[T, 1, C, H, W]`` of one test sample on the device of the network, its label."""
    number, first = identity(opened.data)["test"], 0
    if number is None or index < number:
        for batch, labels in opened.data.test_batches():
            if index < first + len(labels):
                device = next(opened.model.parameters()).device
                x, _ = next(iter(Prefetch([(batch, labels)], device, opened.data.to_float)))
                return x.narrow(x.dim() - 4, index - first, 1), int(labels[index - first])
            first += len(labels)
        number = first
    if not number:
        raise UserError("no test sample can be read")
    raise UserError(f"--sample must be 0 to {number - 1}: the test set has {number} samples, got {index}")


def _class(opened: Opened, label: int) -> str:
    classes = getattr(getattr(getattr(opened.data, "test", None), "images", None), "classes", None)
    return f"class {label}" if classes is None else f"class {label} ({classes[label]})"


@torch.no_grad()
def _answer(opened: Opened, x: Tensor, label: int) -> str:
    with evaluating(opened.model):
        answer = int(opened.model(x).flatten(0, -2).mean(0).argmax())
    return f"the network answers {_class(opened, answer)}, which is {'right' if answer == label else 'wrong'}"


# ---- the report


def _say_what(report: Report, layers: list[Layer], chosen: dict[str, list[Place]]) -> None:
    report.say(
        "A neuron charges its potential with the input current (h[t]), fires where h[t] reaches the threshold, and is "
        "reset (v[t]). Potentials are dimensionless, like the threshold; t counts time-steps from 1 to T; at t = 0 the "
        "neuron is at rest. Rate: spikes per neuron and time-step. All numbers are of this one sample."
    )
    rows = []
    for layer in layers:
        silent, always = (int((layer.steps == number).sum()) for number in (0, layer.T))
        shares = (f"{number:,} ({percent(number / layer.neurons)})" for number in (silent, always))
        rows.append((layer.name, f"{layer.neurons:,}", *shares, f"{layer.s.mean():.4f}"))
    report.show(("layer", "neurons", "never fired", "fired in every time-step", "rate"), rows)
    report.say(
        "Neurons whose potential is drawn: at even quantiles of the spike count among the neurons that fired, but not "
        "in every time-step; if these are too few, also among those that fired in every time-step. In a layer that is "
        "silent: those that came closest to the threshold. There are fewer of them where fewer neurons fired."
    )
    rows = [
        (layer.name, place.channel, place.y, place.x, f"{layer.s[:, place.index].sum():g}")
        for layer in layers
        for place in chosen[layer.name]
    ]
    report.show(("layer", "channel", "y", "x", "spikes"), rows)


def _add_data(report: Report, layers: list[Layer], chosen: dict[str, list[Place]]) -> None:
    where = {
        "layer": "name of the neuron layer",
        "channel": "channel of the neuron, from 0",
        "y": "row of the neuron in its channel, from 0 at the top",
        "x": "column of the neuron in its channel, from 0 at the left",
    }
    rows = []
    for layer in layers:
        for place in chosen[layer.name]:
            for t in range(layer.T):
                row = {"layer": layer.name, "channel": place.channel, "y": place.y, "x": place.x, "t": t + 1}
                values = {"input": layer.x, "h": layer.h, "v": layer.v, "spike": layer.s}
                rows.append(row | {name: f"{values[name][t, place.index]:.9g}" for name in values})
    report.table(
        "potentials",
        where
        | {
            "t": "time-step, 1 to T",
            "input": "input current of the neuron in this time-step, dimensionless",
            "h": "membrane potential after the input, before firing and reset, dimensionless",
            "v": "membrane potential after the reset, dimensionless; equals h where the neuron does not fire",
            "spike": "1 where the neuron fires, else 0",
        },
        rows,
    )
    rows = [
        {"layer": layer.name, "neuron": place.index, "t": t + 1}
        for layer in layers
        for place in layer.subset()
        for t in layer.s[:, place.index].nonzero().flatten().tolist()
    ]
    report.table(
        "raster",
        {
            "layer": where["layer"],
            "neuron": "index of the neuron in its layer, from 0: (channel * height + y) * width + x",
            "t": "time-step in which it fires, 1 to T; a neuron of the raster plot without a line never fires",
        },
        rows,
    )
