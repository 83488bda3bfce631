"""Measures the overhead of a call: calls from Python on tensors with very few numbers.

    python -m benchmarks.overhead [--device cpu|cuda] [--check] [--json FILE]

The result is microseconds per call by the CPU's clock. On a GPU, a round does not wait for the GPU. --check fails above
these limits: 20 us for forward without gradients, 100 us for forward + backward. They hold for a machine on which
forward + backward of torch.relu takes 19 us; where it takes longer, the limits grow in proportion. All calls take
turns, and the least time of many short rounds counts, because other programs can only slow a round down.

A block (BNNeuron with IF and ADD) is compared with torch's BatchNorm2d, relu and add in the same run: --check fails if
forward + backward takes more than 1.4 times as long. (1.2 to 1.35 were measured; the aim is 1.25.)
"""

import argparse
import time

import torch

from benchmarks.common import append_rows, environment, quantiles
from sewsnn import functional, layers, neuron

LIMITS_US = {"forward": 20.0, "forward_backward": 100.0}
MOST_PATIENCE = 5  # the program repeats the rounds up to this many times while a limit is exceeded
BLOCK, MODULES = "sewsnn.layers.BNNeuron, ADD", "torch BatchNorm2d, relu, add"
MOST_TIMES_MODULES = 1.4
RELU_US = 19.3  # forward + backward of torch.relu on the machine for which the limits were set


def cases(device: str) -> dict:
    """Returns the calls to measure: (case, provider) -> function."""
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
    return found | block_cases(device)


def block_cases(device: str) -> dict:
    """Returns the calls of a block and of torch's modules: (case, provider) -> function."""
    z = torch.randn(4, 1, 8, 2, 2, device=device, requires_grad=True)
    shortcut = torch.ones_like(z, requires_grad=True)
    frames, sum_of = (t.detach().flatten(0, 1).requires_grad_() for t in (z, shortcut))
    block = layers.BNNeuron(8, connect_f="ADD").to(device)
    norm = torch.nn.BatchNorm2d(8).to(device)
    grad, grad_frames = torch.ones_like(z), torch.ones_like(frames)
    return {
        ("forward", BLOCK): lambda: block(z, shortcut),
        ("forward", MODULES): lambda: torch.relu(norm(frames)) + sum_of,
        ("forward_backward", BLOCK): lambda: block(z, shortcut).backward(grad),
        ("forward_backward", MODULES): lambda: (torch.relu(norm(frames)) + sum_of).backward(grad_frames),
    }


def microseconds(call, device: str, rounds: int, calls: int = 100) -> list[float]:
    """Returns microseconds per call, one number per round."""
    times = []
    for _ in range(rounds):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(1e6 * (time.perf_counter() - start) / calls)
    return times


def judge(least: dict[tuple[str, str], float]) -> list[str]:
    """Returns a message for each limit that the least time of a (case, provider) exceeds."""
    too_slow = []
    slower = max(1.0, least["forward_backward", "torch.relu"] / RELU_US)
    for (case, provider), us in least.items():
        limit = LIMITS_US[case] * slower
        if provider == BLOCK:
            modules = least[case, MODULES]
            if case == "forward_backward" and us > MOST_TIMES_MODULES * modules:
                too_slow.append(f"{case} of {BLOCK}: {us:.1f} us, {us / modules:.2f} times {MODULES}")
            continue
        if provider.startswith("sewsnn") and us > limit:
            too_slow.append(f"{case} of {provider}: {us:.1f} us, the limit here is {limit:.0f}")
    return too_slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--check", action="store_true", help="fail if a limit is exceeded")
    parser.add_argument("--json", help="append the rows to this file, one JSON object per line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = environment(arguments.device, "call")
    print("Overhead of a call, " + ", ".join(f"{k} {v}" for k, v in about.items()))
    print(f"{'':>17} {'':>33} {'least':>7} {'median':>7} us")
    calls = cases(arguments.device)
    times = {key: [] for key in calls}
    for done in range(1, arguments.rounds * MOST_PATIENCE + 1):
        for key, call in calls.items():
            times[key] += microseconds(call, arguments.device, 2)[1:]  # the first one warms up
        enough = done % arguments.rounds == 0
        if enough and not (arguments.check and judge({key: min(found) for key, found in times.items()})):
            break  # otherwise repeat: other programs may have kept the machine busy
    rows = []
    for (case, provider), found in times.items():
        least, spread = min(found), quantiles(found)
        print(f"{case:>17} {provider:>33} {least:>7.1f} {spread['p50']:>7.1f}")
        row = {"case": f"overhead_{case}", "provider": provider, "least_us": least}
        rows.append(row | {f"{name}_us": value for name, value in spread.items()} | about)
    too_slow = judge({key: min(found) for key, found in times.items()})
    if arguments.json:
        append_rows(arguments.json, rows)
    if arguments.check and too_slow:
        raise SystemExit("\n".join(too_slow))


if __name__ == "__main__":
    main()
