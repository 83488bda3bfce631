"""CPU: LIF forward + backward over all time-steps, sewsnn's kernels beside a loop over time-steps in plain torch.

    python benchmarks/cpu_neuron.py [--neurons 1000000] [--T 4 16] [--json FILE]

The rivals, in one run on the same data:

    loop      the per-time-step torch loop everyone writes (one autograd graph per step, surrogate as autograd.Function)
    compile   torch.compile (inductor) of that loop
    native    sewsnn.functional.lif_multistep

Times are medians over repeats that alternate between the rivals; all must give the same spikes. Per neuron and
time-step native moves 20 bytes: forward reads x and writes s, backward reads x and the gradient of s and writes the
gradient of x. The last column divides them by its time.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from sewsnn import functional, surrogate

_ATAN = surrogate.ATan(2.0)
TAU, V_THRESHOLD, V_RESET = 2.0, 1.0, 0.0


def cpu_name() -> str:
    """The processor, as the system names it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def loop(x_seq: torch.Tensor, atan=_ATAN) -> torch.Tensor:
    """LIF, hard reset, detached, one time-step after the other."""
    v = torch.zeros_like(x_seq[0])
    s_seq = []
    for x in x_seq:
        h = v + (x - (v - V_RESET)) / TAU
        s = atan(h - V_THRESHOLD)
        s_reset = s.detach()
        v = (1.0 - s_reset) * h + s_reset * V_RESET
        s_seq.append(s)
    return torch.stack(s_seq)


class _Spike(torch.autograd.Function):
    """ATan, alpha = 2, in a form torch.compile traces."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * x).square())


def compiled_loop():
    """torch.compile of the loop."""
    return torch.compile(lambda x_seq: loop(x_seq, _Spike.apply), fullgraph=True)


def native(x_seq: torch.Tensor) -> torch.Tensor:
    return functional.lif_multistep(x_seq, tau=TAU, backend="native")[0]


def seconds(function, x_seq, grad) -> float:
    """One forward + backward."""
    x_seq.grad = None
    start = time.perf_counter()
    function(x_seq).backward(grad)
    return time.perf_counter() - start


def measure(T: int, neurons: int, repeats: int, rivals: dict) -> dict[str, float]:
    """Median seconds of each rival."""
    generator = torch.Generator().manual_seed(0)
    x_seq = torch.randn(T, neurons, generator=generator).mul_(1.5).requires_grad_()
    grad = torch.randn(T, neurons, generator=generator)
    times = {name: [] for name in rivals}
    spikes = {}
    for name, function in rivals.items():  # warm-up, and they must agree
        seconds(function, x_seq, grad)
        spikes[name] = function(x_seq).detach()
    differ = [name for name, s in spikes.items() if not torch.equal(s, spikes["loop"])]
    if differ:
        raise SystemExit(f"spikes of {', '.join(differ)} differ from the loop's")
    del spikes
    for _ in range(repeats):
        for name, function in rivals.items():
            times[name].append(seconds(function, x_seq, grad))
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=1_000_000)
    parser.add_argument("--T", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a compiler)")
    parser.add_argument("--json", help="write the results to this file")
    arguments = parser.parse_args()
    machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(
        f"LIF forward + backward, {arguments.neurons:,} neurons, fp32, tau = {TAU:g}; "
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    )
    print("   T   loop ms  compile ms  native ms  loop/native  compile/native   GB/s")
    results = []
    for T in arguments.T:
        rivals = {"loop": loop, "native": native}
        if not arguments.no_compile:
            rivals["compile"] = compiled_loop()
        t = measure(T, arguments.neurons, arguments.repeats, rivals)
        compiled = t.get("compile", float("nan"))
        gigabytes = 20 * T * arguments.neurons / t["native"] / 1e9
        print(
            f"{T:>4} {1e3 * t['loop']:>9.1f} {1e3 * compiled:>11.1f} {1e3 * t['native']:>10.1f} "
            f"{t['loop'] / t['native']:>12.1f} {compiled / t['native']:>15.1f} {gigabytes:>6.1f}"
        )
        results.append({"T": T, "neurons": arguments.neurons, "seconds": t})
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
