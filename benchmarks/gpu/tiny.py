"""Runs every neuron kernel once, on shapes small enough for compute-sanitizer, and compares with the reference.

    python -m benchmarks.gpu.tiny [--device cuda|cpu] [--every N] [--large]

The cases cover storage types, neurons, short and long T, aligned and odd sizes, with and without the gradient of the
leak, an initial v and v_seq. --every 5 takes only every fifth case. --large launches each of the shapes that are timed
once, for a profiler.
"""

import argparse
import itertools

import torch

from sewsnn import functional

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NEURONS = ("if", "lif2", "lif3", "plif")


def call(neuron: str, x, v, w, backend: str, store_v_seq: bool):
    settings = {"v": v, "backend": backend, "store_v_seq": store_v_seq}
    if neuron == "if":
        return functional.if_multistep(x, **settings)
    if neuron == "plif":
        return functional.plif_multistep(x, w, **settings)
    return functional.lif_multistep(x, tau=float(neuron[-1]), **settings)


def gradients(neuron, x, v, w, backend, store_v_seq):
    """Returns the spikes and the gradients of x, v and w."""
    leaves = [t.detach().requires_grad_() for t in (x, v, w)]
    s, v_out = call(neuron, *leaves, backend, store_v_seq)
    loss = (s.double() * torch.linspace(-1, 1, s.numel(), device=s.device).view_as(s)).sum() + v_out.double().sum()
    wanted = leaves if neuron == "plif" else leaves[:2]
    return s.detach().cpu(), [g.cpu() for g in torch.autograd.grad(loss, wanted)]


def differences(device: str, every: int = 1):
    """Yields for each case, or every n-th one, how it differs from the reference on the CPU, and then None."""
    cases = itertools.product(DTYPES, NEURONS, (3, 4, 17), (64, 301), (False, True))
    for seed, (dtype, neuron, T, M, store_v_seq) in itertools.islice(enumerate(cases), 0, None, every):
        generator = torch.Generator().manual_seed(seed)
        state = torch.float64 if dtype == torch.float64 else torch.float32
        x = (torch.randn(T, M, generator=generator) * 1.5 + 0.5).to(dtype)
        v = (torch.randn(M, generator=generator) * 0.3).to(state)
        w = torch.tensor(0.0)  # sigmoid(0) is 1/2 everywhere; another sigmoid may differ by a rounding
        s_ref, expected = gradients(neuron, x, v, w, "torch", store_v_seq)
        s, actual = gradients(neuron, x.to(device), v.to(device), w.to(device), "native", store_v_seq)
        case = f"{neuron}, {dtype}, T={T}, M={M}, store_v_seq={store_v_seq}"
        if not torch.equal(s, s_ref):
            yield f"{case}: {int((s != s_ref).sum())} spikes differ from the reference"
        for name, a, b in zip("xvw", actual, expected, strict=False):
            rounding = 2.0**-7 if a.dtype in (torch.float16, torch.bfloat16) else 1e-4
            if not torch.allclose(a, b, rtol=rounding, atol=rounding * max(1.0, float(b.abs().max()))):
                yield f"{case}: the gradient of {name} is off by {float((a - b).abs().max()):.1e}"
        with torch.no_grad():
            s, _ = call(neuron, x.to(device), None, w.to(device), "native", False)
            if not torch.equal(s.cpu(), call(neuron, x, None, w, "torch", False)[0]):
                yield f"{case}: without gradients the spikes differ"
        # A gradient with the same value for all neurons, then no gradient of s.
        for pick in (0, 1):
            grads = []
            for where, backend in ((device, "native"), ("cpu", "torch")):
                leaf = x.to(where).detach().requires_grad_()
                call(neuron, leaf, None, w.to(where), backend, store_v_seq)[pick].sum().backward()
                grads.append(leaf.grad.cpu().double())
            if not torch.allclose(*grads, rtol=1e-2, atol=1e-2):
                yield f"{case}: the gradient of a sum (output {pick}) is off by {(grads[0] - grads[1]).abs().max():.1e}"
        yield None


def check(differences, what: str) -> None:
    """Prints all differences; None marks the end of a case. Fails at the end if there is a difference from ``what``."""
    found, count = [], 0
    for difference in differences:
        count += difference is None
        if difference:
            found.append(difference)
            print(difference, flush=True)
    if found:
        raise SystemExit(f"{len(found)} differences in {count} cases")
    print(f"{count} cases agree with {what}")


def large() -> None:
    """Runs forward and backward once at each shape of SEW-ResNet-18."""
    for dtype, (C, H) in itertools.product((torch.float32, torch.bfloat16), ((64, 56), (512, 7))):
        x = torch.randn(4, 32, C, H, H, device="cuda").to(dtype).flatten(0, 1)
        x = x.contiguous(memory_format=torch.channels_last).unflatten(0, (4, 32)).requires_grad_()
        for neuron in ("if", "lif2", "plif"):
            w = torch.tensor(0.3, device="cuda", requires_grad=True)
            s, _ = call(neuron, x, None, w, "native", False)
            s.backward(torch.randn_like(s))
    x = torch.randn(500, 16, 16384, device="cuda").requires_grad_()
    s, _ = call("lif2", x, None, None, "native", False)
    s.backward(torch.randn_like(s))
    torch.cuda.synchronize()


def run(doc: str, differences, what: str, large) -> None:
    """Runs the command line of a smoke test."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th case")
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    if arguments.large:
        large()
    else:
        check(differences(arguments.device, arguments.every), what)


if __name__ == "__main__":
    run(__doc__, differences, "the reference", large)
