"""Counts parameters, neurons, multiply-accumulates (MACs) and synaptic operations of a network, layer by layer."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from sewsnn.analysis.fan_out import readers
from sewsnn.analysis.watching import evaluating
from sewsnn.neuron import BaseNode

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: estimated energy in pJ of one operation on 32-bit floats at 45 nm: MAC_PJ of a multiplication and an addition
#: (3.7 + 0.9), AC_PJ of an addition. Source: M. Horowitz, Computing's energy problem (and what we can do about it),
#: ISSCC 2014.
MAC_PJ, AC_PJ = 4.6, 0.9


@dataclass(frozen=True)
class LayerOperations:
    """The counts of one layer: a convolution, linear layer, neuron layer, or other module with own parameters.

    Attributes:
        name: its name in ``model.named_modules()``.
        kind: its class.
        parameters: number of its own parameters. A parameter that several layers share counts for the first of them.
        neurons: neurons per image and time-step. Default 0.
        macs: multiply-accumulates of one run. Default 0.
        runs: runs per image: T if the layer runs in every time-step, 1 if it runs once, 0 if it was not called. Default
            0.
        spike_input: True if every input value was a whole number >= 0 (spikes, or sums of spikes); False if not; None
            (default) if no values were seen.
        input_rate: mean number of spikes per input and run, if ``spike_input``; else None (default).
        active_inputs: share of inputs that are not 0, in [0, 1], if ``spike_input``; else None (default).
        synops: synaptic operations per image over all time-steps, if ``spike_input``; else None (default).
    """

    name: str
    kind: str
    parameters: int
    neurons: int = 0
    macs: int = 0
    runs: float = 0.0
    spike_input: bool | None = None
    input_rate: float | None = None
    active_inputs: float | None = None
    synops: float | None = None


@dataclass(frozen=True)
class Operations:
    """The result of :func:`count_operations`: counts of all layers and their totals. ``print`` shows it as a table.

    Attributes:
        images: number of images over which the means are taken; 0: only shapes were computed (meta device).
        layers: one :class:`LayerOperations` per layer.
    """

    images: int
    layers: tuple[LayerOperations, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def neuron_layers(self) -> int:
        """Number of neuron layers that were called."""
        return sum(layer.neurons > 0 for layer in self.layers)

    @property
    def neurons(self) -> int:
        """Number of neurons, per image and time-step."""
        return sum(layer.neurons for layer in self.layers)

    @property
    def T(self) -> float:
        """Time-steps per image: the largest number of runs of a neuron layer; 1 without neuron layers."""
        return max((layer.runs for layer in self.layers if layer.neurons), default=1.0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run of every layer."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_per_image(self) -> float:
        """Multiply-accumulates per image over all runs: the cost if spikes are computed like other numbers."""
        return sum(layer.macs * layer.runs for layer in self.layers)

    @property
    def real_macs_per_image(self) -> float | None:
        """Multiply-accumulates per image of the layers whose input was not spikes; None if no values were seen."""
        if not self.images:
            return None
        return sum(layer.macs * layer.runs for layer in self.layers if layer.spike_input is False)

    @property
    def synops(self) -> float | None:
        """Synaptic operations per image over all time-steps; None if no values were seen."""
        return sum(layer.synops or 0.0 for layer in self.layers) if self.images else None

    @property
    def energy_pj(self) -> float | None:
        """Estimated energy per image in pJ: 4.6 pJ per MAC on real-valued input, 0.9 pJ per synaptic operation.

        It counts arithmetic only, not memory access. None if no values were seen.
        """
        return None if not self.images else MAC_PJ * self.real_macs_per_image + AC_PJ * self.synops

    def to_dict(self) -> dict:
        """The counts as a dictionary for JSON.

        Returns:
            A dictionary of numbers, strings and lists: ``images``, the totals, and ``layers`` with one dictionary per
                layer.
        """
        totals = ("parameters", "neuron_layers", "neurons", "T", "macs", "macs_per_image", "real_macs_per_image")
        found = {name: getattr(self, name) for name in (*totals, "synops", "energy_pj")}
        return {"images": self.images, **found, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        head = ("layer", "kind", "parameters", "neurons", "MACs", "runs", "input rate", "SynOps / image")
        rows = [
            (
                layer.name or "(model)",
                layer.kind,
                f"{layer.parameters:,}",
                f"{layer.neurons:,}" if layer.neurons else "",
                f"{layer.macs:,}" if layer.macs else "",
                f"{layer.runs:g}" if layer.neurons or layer.macs else "",
                "real-valued" if layer.spike_input is False else _number(layer.input_rate, ".4f"),
                _number(layer.synops, ",.0f"),
            )
            for layer in self.layers
        ]
        total = (f"{self.parameters:,}", f"{self.neurons:,}", f"{self.macs:,}", f"T = {self.T:g}", "")
        rows.append(("total", "", *total, _number(self.synops, ",.0f")))
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = []
        for row in (head, *rows):
            cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            lines.append("  ".join(cells).rstrip())
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


class _Counter:
    """The counts that the hooks of one layer collect."""

    def __init__(self):
        self.samples = self.work = self.inputs = 0  # time-steps of all images; neurons or MACs; input values
        self.binary: bool | Tensor = True
        self.spikes: float | Tensor = 0.0
        self.active: float | Tensor = 0.0
        self.synops: float | Tensor = 0.0

    def add(self, samples: int, work: int) -> None:
        self.samples += samples
        self.work += work

    def read(self, x: Tensor, synops) -> None:
        """Adds the input of a convolution or linear layer; the sums stay on the device, so nothing waits."""
        self.inputs += x.numel()
        self.binary = ((x >= 0) & (x == x.floor())).all() & self.binary
        self.spikes = self.spikes + x.sum(dtype=torch.float64)
        self.active = self.active + x.count_nonzero()
        self.synops = self.synops + synops(x)

    def per_run(self) -> int | float:
        """Work per run: an integer, unless the layer sees several sizes."""
        mean = self.work / max(self.samples, 1)
        return self.work // self.samples if self.samples and self.work % self.samples == 0 else mean


@torch.no_grad()
def count_operations(model: nn.Module, batches: Tensor | Iterable[Tensor]) -> Operations:
    """Counts parameters, neurons, MACs and synaptic operations of ``model`` in a run, per layer and in total.

    MACs: a convolution of one image takes ``C_out H_out W_out (C_in / groups) K_h K_w`` multiply-accumulates, padding
    included, as usual. A linear layer takes ``in_features out_features`` per vector. ``runs`` counts how often a layer
    runs per image: T times if it reads the spikes of every time-step, once if it reads a still image.

    Synaptic operations: each output that reads an input spike accumulates it once. A layer with spikes as input needs,
    per image,

        SynOps = sum over t and inputs i of x_i[t] * fan_out_i

    where ``fan_out_i`` is the number of outputs that read input i. The count is exact for stride, dilation, groups and
    any padding; inputs at borders have fewer readers. Without borders it equals ``rate * T * MACs``, the usual
    definition, where the rate is the mean number of spikes per input and time-step (``input_rate``). ADD passes on sums
    0, 1, 2, 3 and so on: an input of k counts as k spikes. ``active_inputs`` counts it once.

    A layer has spikes as input if all its input values are whole numbers >= 0. Spikes, their sums and maxima, and
    frames of event counts are such numbers. Other layers do MACs instead of synaptic operations: for example, the first
    convolution of an image and the classifier of a mean.

    The model runs in evaluation mode; its neurons start at rest. Modes, states and hooks are restored afterwards.

    Args:
        model: any module. Operations are counted in ``nn.Conv1d/2d/3d``, ``nn.Linear`` and the nodes of
            :mod:`sewsnn.neuron`; other layers only add their parameters. With the model and the batches on the meta
            device, only shapes are computed, and there are no synaptic operations.
        batches: one input tensor, or several, with which the model is called one after the other. The number of images
            is N of the ``[T, N, ...]`` input of the nodes, or the first dimension of a batch if there are no nodes. In
            single-step mode a call is one time-step of N images, and counts as N images.

    Returns:
        :class:`Operations` with one :class:`LayerOperations` per layer; ``print`` shows it as a table.

    Raises:
        TypeError: ``model`` is not a module, or a batch is not a tensor.
        ValueError: there is no batch, or a batch is empty.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> found = count_operations(net, torch.rand(2, 3, 32, 32))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    modules = dict(model.named_modules())
    counters = {name: _Counter() for name, m in modules.items() if isinstance(m, (*_CONVS, nn.Linear, BaseNode))}
    seen: list[int] = []  # number of images in each call of a neuron layer, for one batch
    images = 0
    with evaluating(model) as hooks:
        for name, counter in counters.items():
            hooks.append(modules[name].register_forward_hook(_hook(counter, seen)))
        for x in [batches] if isinstance(batches, Tensor) else batches:
            if not isinstance(x, Tensor):
                raise TypeError(f"a batch must be a tensor, got {type(x).__name__}")
            if x.numel() == 0:
                raise ValueError(f"a batch must not be empty, got shape {list(x.shape)}")
            seen.clear()
            model(x)
            images += seen[0] if seen else len(x)
            on_meta = x.is_meta
    if not images:
        raise ValueError("batches must hold at least one batch")
    counted: set[int] = set()
    layers = [_layer(name, module, counters.get(name), images, counted) for name, module in modules.items()]
    return Operations(0 if on_meta else images, tuple(layer for layer in layers if layer is not None))


def _hook(counter: _Counter, seen: list[int]):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        if isinstance(module, BaseNode):
            T, N = (1, x.shape[0]) if module.step_mode == "s" else x.shape[:2]
            seen.append(N)
            counter.add(T * N, x.numel())
            return
        if isinstance(module, nn.Linear):
            samples = math.prod(x.shape[:-1])
            counter.add(samples, samples * module.in_features * module.out_features)
        else:
            kernel = math.prod(module.kernel_size) * module.in_channels // module.groups
            batched = x.dim() == len(module.kernel_size) + 2
            counter.add(len(x) if batched else 1, output.numel() * kernel)
        if not x.is_meta:
            counter.read(x, lambda x: _synops(module, x))

    return hook


def _synops(layer: nn.Module, x: Tensor) -> Tensor:
    """Synaptic operations of all values in x."""
    if isinstance(layer, nn.Linear):
        return x.sum(dtype=torch.float64) * layer.out_features
    sizes = x.shape[-len(layer.kernel_size) :]
    everywhere = x.reshape(-1, *sizes).sum(0, dtype=torch.float64)
    for axis, count in enumerate(readers(layer, sizes)):  # the product over the axes is the number of readers
        shape = [1] * len(sizes)
        shape[axis] = -1
        everywhere = everywhere * count.to(everywhere).view(shape)
    return everywhere.sum() * (layer.out_channels // layer.groups)


def _layer(name, module, counter, images, counted) -> LayerOperations | None:
    own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
    counted.update(map(id, own))
    parameters = sum(p.numel() for p in own)
    kind = type(module).__name__
    if counter is None:
        return LayerOperations(name, kind, parameters) if parameters else None
    runs, work = counter.samples / images, counter.per_run()
    if isinstance(module, BaseNode):
        return LayerOperations(name, kind, parameters, neurons=work, runs=runs)
    if not counter.inputs:
        return LayerOperations(name, kind, parameters, macs=work, runs=runs)
    if not counter.binary:
        return LayerOperations(name, kind, parameters, macs=work, runs=runs, spike_input=False)
    rate, active = (float(total) / counter.inputs for total in (counter.spikes, counter.active))
    synops = float(counter.synops) / images
    return LayerOperations(name, kind, parameters, 0, work, runs, True, rate, active, synops)
