"""Writes the tables of docs/scaling.md: how much many GPUs exchange, compared with how much they compute.

python -m docs.scaling            writes them
python -m docs.scaling --check    exits with an error if they are not up to date

Parameters, neurons, MACs and norms are counted from the networks. The speeds below are assumptions; the page states
them.
"""

import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from docs.marks import fill, main
from sewsnn.analysis.networks import size_of
from sewsnn.models import create_model

PAGE = Path(__file__).parent / "scaling.md"
COMMAND = "python -m docs.scaling"
DEPTHS = (18, 34, 50, 101, 152)
GPUS = (8, 64, 512)

T, BATCH = 4, 32  # time-steps; images per GPU and step
NODE = 8  # GPUs per node
NVLINK, NETWORK = 450e9, 50e9  # bytes per second and GPU, each way
HOP_INSIDE, HOP_OUTSIDE = 3e-6, 10e-6  # seconds per hop inside a node and between nodes
BUCKET = 25 * 2**20  # bytes
FLOPS, MEMORY = 600e12, 4.3e12  # operations per second of bf16 convolutions; bytes per second of a copy
NEURON_BYTES, SHORTCUT_BYTES = 16, 2  # per neuron and step, forward + backward in bf16
BACKWARD = 2 / 3  # share of a step's compute
TRAIN_IMAGES, EPOCHS = 1_281_167, 320
JPEG_BYTES = 110e3  # mean size of an ImageNet training file
PIXELS = 224 * 224 * 3
DISK = 1e9  # bytes per second


class Net(NamedTuple):
    """The numbers of a network that the estimates need."""

    name: str
    parameters: int
    norms: tuple[int, ...]  # channels of each batch norm
    conv: float  # seconds per image, forward + backward
    neurons: float  # seconds per image for norms, neurons and connections, forward + backward

    @property
    def compute(self) -> float:
        """Seconds per step at the assumed speeds: a lower bound."""
        return BATCH * (self.conv + self.neurons)


@cache
def net(depth: int) -> Net:
    name = f"sew_resnet{depth}"
    found = size_of(name)
    with torch.device("meta"):
        model = create_model(name)
    norms = tuple(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    stem = next(layer.macs for layer in found.layers if layer.name == "conv1")
    macs = T * (found.macs - stem) + stem  # the stem's convolution runs once for a still image
    moved = T * found.neurons * (NEURON_BYTES + SHORTCUT_BYTES)
    return Net(name, found.parameters, norms, 3 * 2 * macs / FLOPS, moved / MEMORY)


def ring(gpus: int, size: float) -> float:
    """Seconds of one ring all-reduce through all GPUs. The eight network cards of a node share its traffic."""
    bandwidth = NVLINK if gpus <= NODE else min(NVLINK, NODE * NETWORK)
    hop = HOP_INSIDE if gpus <= NODE else HOP_OUTSIDE
    return 2 * (gpus - 1) / gpus * size / bandwidth + 2 * (gpus - 1) * hop


def hierarchical(gpus: int, size: float) -> float:
    """Seconds of an all-reduce in three parts: a reduce-scatter in each node, an all-reduce of each GPU's eighth with
    its counterparts in the other nodes along a tree, and an all-gather in each node."""
    inside = min(gpus, NODE)
    nodes = gpus // inside
    seconds = 2 * (inside - 1) / inside * size / NVLINK + 2 * (inside - 1) * HOP_INSIDE
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * size / inside / NETWORK + 2 * math.log2(nodes) * HOP_OUTSIDE
    return seconds


def buckets(parameters: int, width: int) -> list[float]:
    """Sizes in bytes of the gradient buckets that DistributedDataParallel sends one after the other.

    ``width`` is the number of bytes per gradient. DistributedDataParallel fills buckets with float32; a compression
    hook makes each bucket smaller, but does not change their number.
    """
    size = 4 * parameters
    count = math.ceil(size / BUCKET)
    return [part * width / 4 for part in [BUCKET] * (count - 1) + [size - BUCKET * (count - 1)]]


class Exchange(NamedTuple):
    """Time to exchange the gradients of one step, in seconds."""

    seconds: float  # all buckets, in three parts
    last: float  # the last bucket, which backward cannot hide
    ring: float  # all buckets, one ring


def exchange(network: Net, gpus: int, width: int) -> Exchange:
    parts = buckets(network.parameters, width)
    times = [hierarchical(gpus, part) for part in parts]
    return Exchange(sum(times), times[-1], sum(ring(gpus, part) for part in parts))


def efficiency(network: Net, gpus: int, width: int) -> tuple[float, float]:
    """Compute time divided by total time, if nothing overlaps and if backward hides all but the last bucket."""
    found = exchange(network, gpus, width)
    exposed = max(found.last, found.seconds - BACKWARD * network.compute)
    return network.compute / (network.compute + found.seconds), network.compute / (network.compute + exposed)


def small(gpus: int) -> float:
    """Seconds of an all-reduce of a few kilobytes, which is the latency of its hops."""
    inside = min(gpus, NODE)
    return 2 * math.log2(inside) * HOP_INSIDE + 2 * math.log2(gpus // inside) * HOP_OUTSIDE


def sync_bytes(network: Net) -> int:
    """Bytes per step for all norms: 2 C + 1 float64 forward (sums, squares, count), 2 C float32 backward."""
    return sum(8 * (2 * channels + 1) + 4 * 2 * channels for channels in network.norms)


# ---- the tables


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def compute_table() -> str:
    head = ["network", "convolutions, ms per image", "neurons and norms, ms per image", "step of 32 images, ms"]
    head += ["images/s and GPU, at most"]
    rows = []
    for n in map(net, DEPTHS):
        per_second = f"{BATCH / n.compute:,.0f}"
        rows.append([f"`{n.name}`", f"{1e3 * n.conv:.3f}", f"{1e3 * n.neurons:.3f}", ms(n.compute), per_second])
    return table(head, rows)


def exchange_table() -> str:
    head = ["network", "gradients, MB", "buckets"]
    head += [f"{gpus} GPUs, ms (one ring)" for gpus in GPUS]
    rows = []
    for n in map(net, DEPTHS):
        for width in (4, 2):
            size = n.parameters * width
            name = f"`{n.name}`, {'float32' if width == 4 else 'bfloat16'}"
            times = [exchange(n, gpus, width) for gpus in GPUS]
            cells = [f"{ms(t.seconds)} ({ms(t.ring)})" for t in times]
            rows.append([name, f"{size / 1e6:.1f}", str(len(buckets(n.parameters, width))), *cells])
    return table(head, rows)


def efficiency_table() -> str:
    head = ["network", "gradients", *(f"{gpus} GPUs, %" for gpus in GPUS)]
    rows = []
    for n in map(net, DEPTHS):
        for width, name in ((4, "float32"), (2, "bfloat16")):
            cells = [f"{100 * none:.1f} to {100 * all_:.1f}" for none, all_ in (efficiency(n, g, width) for g in GPUS)]
            rows.append([f"`{n.name}`", name, *cells])
    return table(head, rows)


def sync_table() -> str:
    head = [
        "network",
        "norms",
        "bytes per step, KB",
        "all-reduces",
        *(f"{gpus} GPUs, ms (% of compute)" for gpus in GPUS),
    ]
    rows = []
    for n in map(net, DEPTHS):
        calls = 2 * len(n.norms)
        cells = [f"{ms(calls * small(gpus))} ({100 * calls * small(gpus) / n.compute:.0f})" for gpus in GPUS]
        rows.append([f"`{n.name}`", str(len(n.norms)), f"{sync_bytes(n) / 1e3:.0f}", str(calls), *cells])
    return table(head, rows)


def batch_table() -> str:
    head = ["GPUs", "images per step", "learning rate, linear rule", "steps per epoch", f"steps of {EPOCHS} epochs"]
    rows = []
    for gpus in GPUS:
        batch = gpus * BATCH
        steps = math.ceil(TRAIN_IMAGES / batch)
        rows.append([str(gpus), f"{batch:,}", f"{0.1 * batch / 256:g}", f"{steps:,}", f"{EPOCHS * steps:,}"])
    return table(head, rows)


def input_table() -> str:
    head = ["network", "images/s and node, at most", "files read, GB/s", "pixels to the GPUs, GB/s"]
    rows = []
    for n in map(net, DEPTHS):
        rate = NODE * BATCH / n.compute
        cells = [f"{rate:,.0f}", f"{rate * JPEG_BYTES / 1e9:.2f}", f"{rate * PIXELS / 1e9:.2f}"]
        rows.append([f"`{n.name}`", *cells])
    return table(head, rows)


def checkpoint_table() -> str:
    head = ["network", "weights, MB", "weights + momentum, MB", "to write, s", "of an epoch on 8 GPUs, %", "on 512, %"]
    rows = []
    for n in map(net, DEPTHS):
        weights = 4 * n.parameters + sum(8 * channels + 8 for channels in n.norms)  # running statistics and counters
        both = weights + 4 * n.parameters
        seconds = both / DISK
        epochs = [TRAIN_IMAGES / (gpus * BATCH) * n.compute for gpus in (GPUS[0], GPUS[-1])]
        cells = [f"{weights / 1e6:.1f}", f"{both / 1e6:.1f}", f"{seconds:.2f}"]
        rows.append([f"`{n.name}`", *cells, *(f"{100 * seconds / epoch:.1f}" for epoch in epochs)])
    return table(head, rows)


TABLES = {
    "compute": compute_table,
    "exchange": exchange_table,
    "efficiency": efficiency_table,
    "sync": sync_table,
    "batch": batch_table,
    "input": input_table,
    "checkpoint": checkpoint_table,
}


def filled(page: str) -> str:
    """Returns the page with new tables."""
    return fill(page, TABLES, PAGE.name)


if __name__ == "__main__":
    main(PAGE, filled, COMMAND)
