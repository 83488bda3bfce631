"""Times forward + backward of LIF neurons over all time-steps on a CPU: sewsnn's kernels beside other implementations.

    python -m benchmarks.cpu_neuron [--neurons 1000000] [--T 4 16] [--memory fresh|recycled] [--json FILE]

These rivals run in one process on the same data:

    loop           the usual loop over time-steps in plain torch, with the surrogate as an autograd.Function
    compile        torch.compile (inductor) of this loop
    spikingjelly   SpikingJelly's LIFNode in multi-step mode, if spikingjelly is installed
    native         sewsnn.functional.lif_multistep

All must give the same spikes as the loop, and gradients within float32 rounding of the float64 reference. The rivals
take turns, and the times are quantiles over the rounds. Per neuron and time-step, native moves 20 bytes: forward reads
x and writes s; backward reads x and the gradient of s, and writes the gradient of x. GB/s is the number of these bytes
divided by the median time. For comparison, the program also copies x into an existing tensor (8 bytes).

torch's CPU allocator returns fresh memory for every result of 32 MB and more, and its page faults take longer than the
arithmetic. --memory fresh (the default) measures this. --memory recycled tells glibc to keep freed memory, as jemalloc
or tcmalloc do.
"""

import argparse
import os
import statistics
import sys
import time

import torch

from benchmarks.common import append_rows, environment, quantiles
from sewsnn import functional, surrogate

RECYCLE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
TAU, V_THRESHOLD, V_RESET = 2.0, 1.0, 0.0
_ATAN = surrogate.ATan(2.0)


def loop(x_seq: torch.Tensor, atan=_ATAN) -> torch.Tensor:
    """LIF with detached hard reset, one time-step after the other."""
    v = torch.zeros_like(x_seq[0])
    s_seq = []
    for x in x_seq:
        h = v + (x - (v - V_RESET)) / TAU
        s = atan(h - V_THRESHOLD)
        s_reset = s.detach()
        v = (1.0 - s_reset) * h + s_reset * V_RESET
        s_seq.append(s)
    return torch.stack(s_seq)


class Spike(torch.autograd.Function):
    """The spike with the surrogate gradient ATan, alpha = 2, in a form that torch.compile can trace."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * x).square())


def compiled_loop():
    """Returns torch.compile of the loop."""
    return torch.compile(lambda x_seq: loop(x_seq, Spike.apply), fullgraph=True)


def spikingjelly_node(backend: str | None = None):
    """Returns SpikingJelly's LIFNode with the same settings, or None if SpikingJelly is not installed."""
    try:
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate as theirs
    except ImportError:
        return None
    node = neuron.LIFNode(TAU, True, V_THRESHOLD, V_RESET, theirs.ATan(2.0), detach_reset=True, step_mode="m")
    if backend:
        node.backend = backend

    def run(x_seq):
        node.reset()
        return node(x_seq)

    return run


def native(x_seq: torch.Tensor) -> torch.Tensor:
    return functional.lif_multistep(x_seq, tau=TAU, backend="native")[0]


def seconds(function, x_seq, grad) -> float:
    """Returns the seconds of one forward + backward."""
    x_seq.grad = None
    start = time.perf_counter()
    function(x_seq).backward(grad)
    return time.perf_counter() - start


def copy_seconds(x_seq) -> float:
    target = torch.empty_like(x_seq)
    target.copy_(x_seq)
    start = time.perf_counter()
    target.copy_(x_seq)
    return time.perf_counter() - start


def check(rivals: dict, x_seq, grad) -> dict[str, float]:
    """Returns the largest error of each rival's gradient against the float64 reference. Wrong spikes end the program.

    A potential within rounding of the threshold may fire in one precision and not in the other. The comparison
    therefore leaves out neurons with other spikes than in float64.
    """
    exact = x_seq.detach().double().requires_grad_()
    s_exact, _ = functional.lif_multistep(exact, tau=TAU, backend="torch")
    s_exact.backward(grad.double())
    same, errors, spikes = None, {}, None
    for name, function in rivals.items():
        seconds(function, x_seq, grad)
        s = function(x_seq).detach()
        if spikes is None:
            spikes, same = s, (s == s_exact).all(0)
        if not torch.equal(s, spikes):
            raise SystemExit(f"spikes of {name} differ from the loop's")
        errors[name] = ((x_seq.grad - exact.grad).abs() * same).max().item()
    worst = max(errors, key=errors.get)
    if errors[worst] > 64 * len(x_seq) * torch.finfo(torch.float32).eps:
        raise SystemExit(f"the gradient of {worst} is off by {errors[worst]:.1e}")
    return errors


def measure(T: int, neurons: int, repeats: int, rivals: dict) -> list[dict]:
    """Returns a row for each rival."""
    generator = torch.Generator().manual_seed(0)
    x_seq = torch.randn(T, neurons, generator=generator).mul_(1.5).requires_grad_()
    grad = torch.randn(T, neurons, generator=generator)
    errors = check(rivals, x_seq, grad)
    times = {name: [] for name in rivals}
    copies = []
    for _ in range(repeats):
        for name, function in rivals.items():
            times[name].append(seconds(function, x_seq, grad))
        copies.append(copy_seconds(x_seq.detach()))
    copied = 8 * T * neurons / statistics.median(copies) / 1e9
    rows = []
    for name, values in times.items():
        p20, p50, p80 = quantiles(values).values()
        row = {"case": "lif_forward_backward", "provider": name, "dtype": "float32", "T": T, "neurons": neurons}
        row |= {"p20_ms": 1e3 * p20, "p50_ms": 1e3 * p50, "p80_ms": 1e3 * p80, "max_error": errors[name]}
        if name == "native":
            row |= {"GB_per_s": 20 * T * neurons / p50 / 1e9, "copy_GB_per_s": copied}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=1_000_000)
    parser.add_argument("--T", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", choices=("fresh", "recycled"), default="fresh")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a compiler)")
    parser.add_argument("--json", help="append the rows to this file, one JSON object per line")
    arguments = parser.parse_args()
    if arguments.memory == "recycled" and not RECYCLE.items() <= os.environ.items():
        # glibc reads these variables when a process starts.
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.cpu_neuron", *sys.argv[1:]], {**os.environ, **RECYCLE}
        )

    rows = []
    for T in arguments.T:
        rivals = {"loop": loop}
        if not arguments.no_compile:
            rivals["compile"] = compiled_loop()
        if node := spikingjelly_node():
            rivals["spikingjelly"] = node
        rivals["native"] = native
        rows += measure(T, arguments.neurons, arguments.repeats, rivals)

    run = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    about = environment("cpu", "neuron") | {"memory": arguments.memory, "run": run}
    print("LIF forward + backward, fp32, tau = 2; " + ", ".join(f"{k} {v}" for k, v in about.items()))
    print(
        f"{'T':>4} {'neurons':>9} {'provider':>13} {'p20 ms':>8} {'p50 ms':>8} {'p80 ms':>8} {'ns/el':>7} {'slower':>7}"
    )
    for row in rows:
        ours = next(r for r in rows if r["T"] == row["T"] and r["provider"] == "native")
        elements = row["T"] * row["neurons"]
        print(
            f"{row['T']:>4} {row['neurons']:>9} {row['provider']:>13} {row['p20_ms']:>8.2f} {row['p50_ms']:>8.2f} "
            f"{row['p80_ms']:>8.2f} {1e6 * row['p50_ms'] / elements:>7.2f} {row['p50_ms'] / ours['p50_ms']:>6.1f}x"
            + (f"  {row['GB_per_s']:.0f} GB/s (a copy {row['copy_GB_per_s']:.0f})" if row is ours else "")
        )
    if arguments.json:
        append_rows(arguments.json, [row | about for row in rows])


if __name__ == "__main__":
    main()
