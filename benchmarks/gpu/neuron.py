"""Measures the neuron kernels against the bandwidth of a copy, at the shapes of SEW ResNets.

    python -m benchmarks.gpu.neuron [--device cuda|cpu] [--quick] [--json FILE] [--resume]

It times the ops for forward in training, forward in inference, and backward, each alone. GB/s count the bytes of
tests/native/test_bytes.py: 2 accesses per element forward, 3 backward, and the membrane potentials kept for backward
where T > 16. For comparison it times a copy that moves as many bytes, and one that moves 2 GiB. Backward reads twice
what it writes, which is faster for memory than a copy with equal reads and writes, so it can exceed a copy's bandwidth.
Each row gives the number of spikes that differ from the reference on two samples, and the largest error of the gradient
there.
"""

import itertools

import torch

from benchmarks.common import quantiles
from benchmarks.gpu import clock
from benchmarks.gpu.cases import DTYPES, Rows, operand, parse
from benchmarks.gpu.predicted import predicted_share
from sewsnn import functional
from sewsnn.ops.neuron import checkpoint_count
from sewsnn.surrogate import ATan

#: (kind, tau, leak): arguments of the op
NEURONS = {"IF": (0, 2.0, None), "LIF": (1, 2.0, None), "LIF_tau3": (1, 3.0, None), "PLIF": (2, 2.0, 0.5)}
PASSES = ("forward", "inference", "backward")


def op_calls(neuron, dtype, shape, device, what) -> tuple[list, int]:
    """Returns the calls of one round, and the bytes that each call moves."""
    kind, tau, leak = NEURONS[neuron]
    elements = torch.Size(shape).numel()
    bytes_per_call = (3 if what == "backward" else 2) * dtype.itemsize * elements
    if what != "inference":
        bytes_per_call += 4 * checkpoint_count(shape[0]) * (elements // shape[0])
    leak = None if leak is None else torch.tensor(leak, device=device)
    options = (kind, tau, True, 1.0, 0.0, ATan.kind, 2.0, True, 0)
    calls = []
    for _ in range(clock.rotations(bytes_per_call, device)):
        x = operand(shape, dtype, device)
        if what != "backward":
            training = what == "forward"
            calls.append(lambda x=x, t=training: torch.ops.sewsnn.neuron_forward(x, None, leak, *options, t))
            continue
        s, _, kept = torch.ops.sewsnn.neuron_forward(x, None, leak, *options, True)
        grad = torch.randn_like(s)
        calls.append(
            lambda x=x, g=grad, k=kept: torch.ops.sewsnn.neuron_backward(
                g, None, x, None, leak, k, *options, False, leak is not None
            )
        )
    return calls, bytes_per_call


def copy_milliseconds(bytes_per_call: int, device: str, rounds: int) -> float:
    """Returns the median time of moving as many bytes, half read and half written: the faster of copy_ and an
    elementwise kernel (a graph may run copy_ on the copy engine)."""
    pairs = []
    for _ in range(clock.rotations(bytes_per_call, device)):
        source = torch.empty(max(bytes_per_call // 2 // 4, 1), device=device).normal_()
        pairs.append((torch.empty_like(source), source))
    ways = ([lambda p=p: p[0].copy_(p[1]) for p in pairs], [lambda p=p: torch.neg(p[1], out=p[0]) for p in pairs])
    return min(quantiles(clock.milliseconds(calls, device, rounds))["p50"] for calls in ways)


def accuracy(neuron, dtype, shape, device) -> dict:
    """Compares with the reference on two samples: the number of different spikes, and the largest error of the gradient
    of x."""
    kind, tau, leak = NEURONS[neuron]
    x = operand((shape[0], 2, *shape[2:]), dtype, device)
    grad = operand(x.shape, dtype, device, 1.0, 0.0)
    w = None if leak is None else torch.tensor(0.0)  # sigmoid(0) = 1/2
    results = []
    for where, backend in ((device, "native"), ("cpu", "torch")):
        leaf = x.to(where).detach().requires_grad_()
        if kind == 0:
            s, _ = functional.if_multistep(leaf, backend=backend)
        elif w is None:
            s, _ = functional.lif_multistep(leaf, tau=tau, backend=backend)
        else:
            s, _ = functional.plif_multistep(leaf, w.to(where), backend=backend)
        s.backward(grad.to(where))
        results.append((s.detach().cpu(), leaf.grad.cpu().double()))
    (s, g), (s_ref, g_ref) = results
    return {"spikes_differ": int((s != s_ref).sum()), "max_error": float((g - g_ref).abs().max())}


def measure(arguments, rows: Rows) -> None:
    """Adds a row for each neuron, shape, dtype and pass."""
    device, rounds = arguments.device, arguments.rounds
    large = 64 << 20 if device == "cpu" else 2 << 30
    copied = large / copy_milliseconds(large, device, rounds) / 1e6
    rows.add({"case": "copy", "provider": "torch", "bytes": large, "GB_per_s": copied})
    for (place, shape), dtype, neuron in itertools.product(arguments.shapes.items(), DTYPES, NEURONS):
        missing = [what for what in PASSES if not rows.has(f"{neuron}_{what}", "native", dtype, place)]
        about = accuracy(neuron, DTYPES[dtype], shape, device) if missing else {}
        for what in missing:
            calls, moved = op_calls(neuron, DTYPES[dtype], shape, device, what)
            times = quantiles(clock.milliseconds(calls, device, rounds))
            del calls
            copy_ms = copy_milliseconds(moved, device, rounds)
            row = {"case": f"{neuron}_{what}", "provider": "native", "dtype": dtype, "place": place}
            row |= {"shape": shape, "T": shape[0], "bytes": moved} | {f"{k}_ms": v for k, v in times.items()}
            row |= {"GB_per_s": moved / times["p50"] / 1e6, "copy_GB_per_s": moved / copy_ms / 1e6}
            row |= {"share_of_copy": copy_ms / times["p50"], "large_copy_GB_per_s": copied}
            row["predicted_share"] = predicted_share(row, rows.about["device"])
            rows.add(row | about)
            if device == "cuda":
                torch.cuda.empty_cache()


def main() -> None:
    torch.manual_seed(0)
    arguments = parse(__doc__)
    measure(arguments, Rows(arguments, "neuron"))


if __name__ == "__main__":
    main()
