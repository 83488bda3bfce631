"""Parameters, neurons, multiply-accumulates and synaptic operations of a network, layer by layer."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from sewsnn.analysis.fan_out import readers
from sewsnn.analysis.watching import evaluating
from sewsnn.neuron import BaseNode

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: estimated energy of one operation on 32-bit floats at 45 nm, in pJ: a multiplication and an addition (3.7 + 0.9), and
#: an addition alone. Source: M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014.
MAC_PJ, AC_PJ = 4.6, 0.9


@dataclass(frozen=True)
class LayerOperations:
    """A layer: a convolution, a linear layer, a neuron layer, or another module that has parameters of its own."""

    name: str
    kind: str  #: its class
    parameters: int  #: its own; one that several layers share is counted with the first
    neurons: int = 0  #: per image and time-step
    macs: int = 0  #: of one run
    runs: float = 0.0  #: per image: T if it runs at every time-step, 1 if it is computed once, 0 if it was not called
    spike_input: bool | None = (
        None  #: it was given spikes, 0, 1, 2 ..., and nothing else; None: there was nothing to see
    )
    input_rate: float | None = None  #: mean number of spikes per input and run, where spike_input
    active_inputs: float | None = None  #: share of the inputs that are not 0, where spike_input
    synops: float | None = None  #: per image, all time-steps, where spike_input


@dataclass(frozen=True)
class Operations:
    """What :func:`count_operations` found. ``str()`` of it is a table."""

    images: int  #: that the means are over; 0: shapes alone were looked at
    layers: tuple[LayerOperations, ...]

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def neuron_layers(self) -> int:
        """Number of layers with neurons that were called."""
        return sum(layer.neurons > 0 for layer in self.layers)

    @property
    def neurons(self) -> int:
        """Per image and time-step."""
        return sum(layer.neurons for layer in self.layers)

    @property
    def T(self) -> float:
        """Time-steps per image: the most runs of any neuron layer, 1 if there is none."""
        return max((layer.runs for layer in self.layers if layer.neurons), default=1.0)

    @property
    def macs(self) -> int:
        """Of one time-step: one run of every layer."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_per_image(self) -> float:
        """Of all runs; that is what it costs where spikes are numbers like others."""
        return sum(layer.macs * layer.runs for layer in self.layers)

    @property
    def real_macs_per_image(self) -> float | None:
        """Of the layers whose input was not spikes; None: there was nothing to see."""
        if not self.images:
            return None
        return sum(layer.macs * layer.runs for layer in self.layers if layer.spike_input is False)

    @property
    def synops(self) -> float | None:
        """Synaptic operations per image, all time-steps; None: there was nothing to see."""
        return sum(layer.synops or 0.0 for layer in self.layers) if self.images else None

    @property
    def energy_pj(self) -> float | None:
        """An estimate from the arithmetic alone, memory left out: 4.6 pJ for a MAC, 0.9 pJ for a synaptic operation."""
        return None if not self.images else MAC_PJ * self.real_macs_per_image + AC_PJ * self.synops

    def to_dict(self) -> dict:
        """Numbers, strings and lists alone, for JSON."""
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
    """What the hooks of one layer have seen."""

    def __init__(self):
        self.samples = self.work = self.inputs = 0  # time-steps of all images; neurons or MACs; numbers read
        self.binary: bool | Tensor = True
        self.spikes: float | Tensor = 0.0
        self.active: float | Tensor = 0.0
        self.synops: float | Tensor = 0.0

    def add(self, samples: int, work: int) -> None:
        self.samples += samples
        self.work += work

    def read(self, x: Tensor, synops) -> None:
        """The input of a convolution or a linear layer; tensors are added up where they are, without waiting."""
        self.inputs += x.numel()
        self.binary = ((x >= 0) & (x == x.floor())).all() & self.binary
        self.spikes = self.spikes + x.sum(dtype=torch.float64)
        self.active = self.active + x.count_nonzero()
        self.synops = self.synops + synops(x)

    def per_run(self) -> int | float:
        """A whole number unless the layer is given several sizes."""
        mean = self.work / max(self.samples, 1)
        return self.work // self.samples if self.samples and self.work % self.samples == 0 else mean


@torch.no_grad()
def count_operations(model: nn.Module, batches: Tensor | Iterable[Tensor]) -> Operations:
    """Parameters, neurons, MACs and synaptic operations of ``model``, by layer and in total, as seen in a run.

    MACs. A convolution of one image takes ``C_out H_out W_out (C_in / groups) K_h K_w`` multiply-accumulates, padding
    included, as usual; a linear layer ``in_features out_features`` for each vector. ``runs`` says how often a layer is
    computed for an image: T times where it reads the spikes of every time-step, once where it reads a still image.

    Synaptic operations. An input spike is accumulated once in each output that reads it. A layer fed with spikes does

        SynOps = sum over t and inputs i of x_i[t] * fan_out_i

    of them per image, where ``fan_out_i`` is the number of outputs that read input i: fewer at borders, and exact with
    stride, dilation, groups and any padding. Without borders that is ``rate * T * MACs``, the usual definition, rate
    being the mean number of spikes per input and time-step (``input_rate``). The sums that ADD hands on, 0, 1, 2, 3
    and so on, are that many spikes: an input of k counts k times. ``active_inputs`` counts it once.

    A layer is fed with spikes if all it reads are whole numbers >= 0, as spikes, their sums, their maxima and frames
    of event counts are. Others do MACs, not synaptic operations: the first convolution of an image, the classifier of
    a mean.

    The model runs in evaluation mode, its neurons at rest to begin with, and is left as it was: modes, states, hooks.

    Args:
        model: any, of ``nn.Conv1d/2d/3d``, ``nn.Linear`` and the nodes of :mod:`sewsnn.neuron`; operations of other
            layers are not counted, their parameters are. On the meta device, with batches there, shapes are counted
            without any numbers being computed, and there are no synaptic operations.
        batches: what the model is called with, once or one after the other. The nodes tell the number of images: N of
            the ``[T, N, ...]`` they are given; without nodes it is a batch's first dimension. In single-step mode a
            call is one time-step of N images, and counts as N images.

    Raises:
        TypeError: ``model`` is not a module, or a batch not a tensor.
        ValueError: there is no batch, or an empty one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    modules = dict(model.named_modules())
    counters = {name: _Counter() for name, m in modules.items() if isinstance(m, (*_CONVS, nn.Linear, BaseNode))}
    seen: list[int] = []  # images in each neuron layer's calls of one batch
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
        raise ValueError("batches must hold at least one")
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
    """Of all numbers in x."""
    if isinstance(layer, nn.Linear):
        return x.sum(dtype=torch.float64) * layer.out_features
    sizes = x.shape[-len(layer.kernel_size) :]
    everywhere = x.reshape(-1, *sizes).sum(0, dtype=torch.float64)
    for axis, count in enumerate(readers(layer, sizes)):  # the product over the axes is the number of positions
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
