"""What a neuron costs before its kernel runs: calls from Python on a tensor of eight numbers.

    python -m benchmarks.overhead [--device cpu|cuda] [--check] [--json FILE]

Microseconds per call, on the CPU's clock; on a GPU nothing is waited for within a round. Limits (--check fails above
them): 20 us for a forward without gradients, 100 us for forward + backward. The least of many short rounds counts:
what other programs take from a round is not ours.
"""

import argparse
import time

import torch

from benchmarks.common import append_rows, environment, quantiles
from sewsnn import functional, neuron

LIMITS_US = {"forward": 20.0, "forward_backward": 100.0}


def cases(device: str) -> dict:
    """(what, who) -> a call."""
    x = torch.randn(1, 8, device=device)
    leaf = x.clone().requires_grad_()
    grad = torch.ones_like(x)
    node = neuron.LIFNode().to(device)
    w = torch.tensor(0.3, device=device)

    def without_grad(function):
        def call():
            with torch.no_grad():
                function(x)

        return call

    def with_grad(function):
        return lambda: function(leaf).backward(grad)

    functions = {
        "sewsnn.functional.if_multistep": lambda x: functional.if_multistep(x)[0],
        "sewsnn.functional.lif_multistep": lambda x: functional.lif_multistep(x)[0],
        "sewsnn.functional.plif_multistep": lambda x: functional.plif_multistep(x, w)[0],
        "sewsnn.neuron.LIFNode": node,
        "torch.relu": torch.relu,
    }
    found = {}
    for name, function in functions.items():
        found["forward", name] = without_grad(function)
        found["forward_backward", name] = with_grad(function)
    return found


def microseconds(call, device: str, rounds: int, calls: int = 100) -> list[float]:
    """Per call, one number a round."""
    times = []
    for _ in range(rounds):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(1e6 * (time.perf_counter() - start) / calls)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--check", action="store_true", help="fail if a limit is exceeded")
    parser.add_argument("--json", help="append the rows to this file, one JSON object per line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = environment(arguments.device)
    print("Overhead of a call, " + ", ".join(f"{k} {v}" for k, v in about.items()))
    print(f"{'':>17} {'':>33} {'least':>7} {'median':>7} us")
    too_slow, rows = [], []
    for (case, provider), call in cases(arguments.device).items():
        microseconds(call, arguments.device, 3)
        times = microseconds(call, arguments.device, arguments.rounds)
        least, spread = min(times), quantiles(times)
        print(f"{case:>17} {provider:>33} {least:>7.1f} {spread['p50']:>7.1f}", flush=True)
        row = {"case": f"overhead_{case}", "provider": provider, "least_us": least}
        rows.append(row | {f"{name}_us": value for name, value in spread.items()} | about)
        if provider.startswith("sewsnn") and least > LIMITS_US[case]:
            too_slow.append(f"{case} of {provider}: {least:.1f} us, the limit is {LIMITS_US[case]:.0f}")
    if arguments.json:
        append_rows(arguments.json, rows)
    if arguments.check and too_slow:
        raise SystemExit("\n".join(too_slow))


if __name__ == "__main__":
    main()
