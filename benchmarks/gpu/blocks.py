"""Measures batch norm + IF + ADD between two convolutions: each pass against a copy, and the whole beside modules.

    python -m benchmarks.gpu.blocks [--device cuda|cpu] [--quick] [--json FILE] [--resume]

Passes (single ops, channels_last): statistics reads z; write reads z and the shortcut and writes out; reduce reads z
and the gradient; apply reads both and writes the gradient of z. That is 1 + 3 + 2 + 3 accesses per element: 18 bytes in
half precision, two of them for the shortcut. With max pooling 2x2 of the output ("pooled") or of z ("pool_statistics",
"unpool"): POOLED below counts the accesses. Whole: forward + backward in training, with sewsnn's op, with
nn.BatchNorm2d + sewsnn's neuron + add, and with torch.compile of batch norm + a loop over time-steps + add.
"""

import itertools

import torch
from torch import nn

from benchmarks import cpu_neuron
from benchmarks.common import quantiles
from benchmarks.gpu import clock
from benchmarks.gpu.cases import DTYPES, Rows, operand, parse
from benchmarks.gpu.neuron import copy_milliseconds
from benchmarks.gpu.predicted import predicted_share
from sewsnn import layers, neuron
from sewsnn.ops import bn as native
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan

ACCESSES = {"statistics": 1, "write": 3, "reduce": 2, "apply": 3}
#: with max pooling 2x2 (csrc/core/max_pool_params.h): numbers per element, numbers per window, bytes per window
POOLED = {
    "pool_statistics": (1, 1, 1),
    "pooled_write": (1, 1, 1),
    "pooled_backward": (3, 2, 2),
    "unpool": (2, 1, 1),
}
WINDOW = (2, 2, 0)
OPTIONS = native.Options(1e-5, native.ADD, 0, NeuronSpec("IF", ATan()))


def pass_calls(what, dtype, shape, device) -> tuple[list, int]:
    """Returns the calls of one round of a pass, and the bytes that each call moves."""
    ops = torch.ops.sewsnn
    small = torch.Size([*shape[:-2], shape[-2] // 2, shape[-1] // 2])
    elements, windows, positions_bytes = POOLED.get(what) or (ACCESSES[what], 0, 0)
    bytes_per_call = dtype.itemsize * (elements * torch.Size(shape).numel() + windows * small.numel())
    bytes_per_call += positions_bytes * small.numel()
    weight, bias = torch.ones(shape[2], device=device), torch.zeros(shape[2], device=device)
    none, flags = torch.empty(0, device=device), (True, False, False, False)
    backward = OPTIONS._replace(connect=native.NONE)
    calls = []
    for _ in range(clock.rotations(bytes_per_call, device)):
        z, shortcut, grad = (operand(shape, dtype, device) for _ in range(3))
        statistics = ops.bn_statistics(z, 0, False)
        norm = (statistics, weight, bias, None)
        sums = torch.zeros(2, shape[2], device=device)
        count = z.numel() / shape[2]
        pooled, positions = ops.max_pool(z, None, *WINDOW, True) if what in POOLED else (None, None)
        affine = torch.zeros(3, shape[2], device=device)
        calls.append(
            {
                "statistics": lambda z=z: ops.bn_statistics(z, 0, False),
                "write": lambda z=z, s=shortcut, n=norm: ops.bn_neuron_forward(
                    z, s, *n, *OPTIONS.arguments, 0, True, False, True
                ),
                "reduce": lambda z=z, g=grad, n=norm: ops.bn_neuron_reduce(
                    g, None, z, None, *n, none, *backward.arguments, False
                ),
                "pool_statistics": lambda z=z, w=weight: ops.max_pool_statistics(
                    z, w, None, None, None, (0.0, *WINDOW, True)
                ),
                "pooled_write": lambda z=z, n=norm: ops.bn_neuron_pooled(
                    z, None, *n, *backward.arguments, 0, True, *WINDOW, True
                ),
                "pooled_backward": lambda z=z, g=pooled, p=positions, n=norm: ops.bn_neuron_pooled_backward(
                    g, p, z, None, *n, none, (*backward.numbers, *WINDOW, *flags)
                ),
                "unpool": lambda z=z, g=pooled, p=positions, a=affine: ops.max_pool_backward(
                    g, p, z, a, *shape[-2:], *WINDOW
                ),
                "apply": lambda z=z, g=grad, n=norm, s=sums, c=count: ops.bn_neuron_apply(
                    g, z, None, *n, none, s, c, *backward.arguments, False
                ),
            }[what]
        )
    return calls, bytes_per_call


def plain(z, shortcut, bn):
    """Batch norm, the loop over time-steps and the connection, for torch.compile."""
    y = bn(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    return cpu_neuron.loop(y.float(), cpu_neuron.Spike.apply).to(z.dtype) + shortcut


def whole(name, shape, device):
    """Returns a function of z and the shortcut, and its batch norm."""
    bn = nn.BatchNorm2d(shape[2]).to(device)
    if name == "compile":
        torch.compiler.reset()
        compiled = torch.compile(plain, fullgraph=True, dynamic=False)
        return lambda z, s: compiled(z, s, bn), bn
    node = neuron.IFNode(store_v=False)
    fused = name == "native"
    return lambda z, s: layers.bn_neuron(z, bn, node, s, connect_f="ADD", fused=fused).out, bn


def measure(arguments, rows: Rows) -> None:
    """Adds rows for each shape and dtype: first the passes, then the whole block for each implementation."""
    device = arguments.device
    shapes = {place: shape for place, shape in arguments.shapes.items() if len(shape) == 5 and shape[0] == 4}
    for (place, shape), dtype in itertools.product(shapes.items(), DTYPES):
        about = {"dtype": dtype, "place": place, "shape": shape, "T": shape[0]}
        for what in (*ACCESSES, *POOLED):
            if rows.has(f"block_{what}", "native", dtype, place):
                continue
            calls, moved = pass_calls(what, DTYPES[dtype], shape, device)
            times = quantiles(clock.milliseconds(calls, device, arguments.rounds))
            del calls
            copy_ms = copy_milliseconds(moved, device, arguments.rounds)
            row = {"case": f"block_{what}", "provider": "native", "bytes": moved} | about
            row |= {f"{k}_ms": v for k, v in times.items()}
            row |= {"GB_per_s": moved / times["p50"] / 1e6, "share_of_copy": copy_ms / times["p50"]}
            rows.add(row | {"predicted_share": predicted_share(row, rows.about["device"])})
        for name in ("native", "modules", "compile"):
            if rows.has("block_forward_backward", name, dtype, place) or (name == "compile" and device == "cpu"):
                continue
            row = {"case": "block_forward_backward", "provider": name} | about
            try:
                row |= time_whole(name, shape, DTYPES[dtype], arguments)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:300]
            rows.add(row)
        if device == "cuda":
            torch.cuda.empty_cache()


def time_whole(name, shape, dtype, arguments) -> dict:
    """Times forward + backward as a network calls it."""
    function, bn = whole(name, shape, arguments.device)
    sets = [[operand(shape, dtype, arguments.device) for _ in range(3)] for _ in range(2)]
    for z, shortcut, _ in sets:
        z.requires_grad_()
        shortcut.requires_grad_()
    calls = [
        lambda z=z, s=s, g=g: torch.autograd.grad(function(z, s), [z, s, bn.weight, bn.bias], g) for z, s, g in sets
    ]
    for call in calls:
        call()
    times = quantiles(clock.eager_milliseconds(calls, arguments.device, arguments.rounds))
    return {f"{k}_ms": v for k, v in times.items()}


def main() -> None:
    torch.manual_seed(0)
    arguments = parse(__doc__)
    measure(arguments, Rows(arguments, "block"))


if __name__ == "__main__":
    main()
