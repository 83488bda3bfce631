"""Measures LIF forward + backward as a user calls it: sewsnn beside other implementations, in one run on the same data.

    python -m benchmarks.gpu.rivals [--providers native compile ...] [--device cuda|cpu] [--quick]
                                    [--json FILE] [--resume]

The other implementations are those of benchmarks/cpu_neuron.py. torch.compile and the loop keep the membrane potential
in fp32, as native does, and convert x and the spikes; the compiler fuses that. SpikingJelly's node is used unchanged,
with its default backend and with backend="cupy" (its potential has the dtype of x). Each row gives the number of spikes
that differ from native's. peak_MiB is the memory of a call beyond its operands. An implementation that fails gives a
row with its error.
"""

import itertools

import torch

from benchmarks import cpu_neuron
from benchmarks.common import quantiles
from benchmarks.gpu import clock
from benchmarks.gpu.cases import DTYPES, Rows, operand, parse
from sewsnn import functional

CASE = "LIF_forward_backward"
PROVIDERS = ("native", "compile", "spikingjelly", "spikingjelly_cupy", "loop")


def native(x):
    return functional.lif_multistep(x, tau=2.0, backend="native")[0]


def loop(x):
    return cpu_neuron.loop(x.float(), cpu_neuron.Spike.apply).to(x.dtype)


def provider(name: str):
    """Returns the function of that name, or None if its library is not installed."""
    if name == "compile":
        torch.compiler.reset()  # each shape needs a compilation, and torch limits their number
        return torch.compile(loop, fullgraph=True, dynamic=False)
    if name.startswith("spikingjelly"):
        return cpu_neuron.spikingjelly_node("cupy" if name.endswith("cupy") else None)
    return {"native": native, "loop": loop}[name]


def time_one(function, sets, arguments) -> dict:
    """Returns times and peak memory of forward + backward."""
    calls = [lambda x=x, grad=grad: torch.autograd.grad(function(x), x, grad) for x, grad in sets]
    cuda = arguments.device == "cuda"
    for call in calls:
        call()
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = quantiles(clock.eager_milliseconds(calls, arguments.device, arguments.rounds))
    peak = {"peak_MiB": (torch.cuda.max_memory_allocated() - before) / 2**20} if cuda else {}
    return {f"{k}_ms": v for k, v in times.items()} | peak


def measure(arguments, rows: Rows) -> None:
    """Adds a row for each implementation, shape and dtype; the rows of one shape and dtype come from the same run."""
    for (place, shape), dtype in itertools.product(arguments.shapes.items(), DTYPES):
        # With hundreds of time-steps, torch.compile takes minutes, and the loop measures only kernel launches.
        names = [n for n in arguments.providers if shape[0] <= 32 or n not in ("compile", "loop")]
        functions = {name: function for name in names if (function := provider(name))}
        if all(rows.has(CASE, name, dtype, place) for name in functions):
            continue
        # Contiguous, so that the loop's torch.stack need not transpose, which is not part of the comparison.
        sets = [tuple(operand(shape, DTYPES[dtype], arguments.device).contiguous() for _ in range(2)) for _ in range(2)]
        spikes = native(sets[0][0])
        for x, _ in sets:
            x.requires_grad_()
        for name, function in functions.items():
            row = {"case": CASE, "provider": name, "dtype": dtype, "place": place, "shape": shape, "T": shape[0]}
            try:
                row["spikes_differ"] = int((function(sets[0][0]).detach() != spikes).sum())
                row |= time_one(function, sets, arguments)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:300]
            rows.add(row)


def main() -> None:
    torch.manual_seed(0)
    arguments = parse(__doc__, providers={"nargs": "+", "choices": PROVIDERS, "default": PROVIDERS})
    measure(arguments, Rows(arguments, "neuron"))


if __name__ == "__main__":
    main()
