"""Runs a neuron on two backends and compares the results."""

import itertools

import torch

from sewsnn import functional
from sewsnn.ops import reference
from sewsnn.ops.spec import NeuronSpec
from sewsnn.surrogate import ATan

# Gradients differ only by rounding: a few operations per time-step, each within half an ulp, over T time-steps.
EPS = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}


def current(shape, dtype=torch.float32, device="cpu", scale=1.5, mean=0.8, seed=0):
    """Input currents with which neurons fire about every second or third time-step."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + mean).to(dtype).to(device)


ATAN = ATan(2.0)


def by_reference(name, x, v=None, w=None, *, store_v_seq=False, surrogate_function=ATAN, **options):
    """Runs the reference of ``functional.<name>_multistep`` on the CPU, because on CUDA torch divides by a number by
    multiplying with its reciprocal. PLIF's leak comes from its own device: another sigmoid may round differently."""
    leak = None if w is None else w.to(reference.state_dtype(x.dtype)).reshape(()).sigmoid().cpu()
    spec = NeuronSpec(name.upper(), surrogate_function, **options)
    s, v_seq = reference.multistep(x.cpu(), spec, None if v is None else v.cpu(), leak)
    return s, v_seq if store_v_seq else v_seq[-1]


def run(name, x, backend, v=None, w=None, loss="s", grad_seed=1, **settings):
    """(s, v, gradients of x, v0, w) of ``functional.<name>_multistep``. ``loss``: which outputs it reads.

    With ``store_v_seq`` the loss reads v_seq, else the final v. ``backend="reference"``: :func:`by_reference`. A
    function in place of ``backend`` is called as :func:`by_reference` is.
    """
    x = x.detach().requires_grad_()
    inputs = [x]
    if v is not None:
        v = v.detach().requires_grad_()
        inputs.append(v)
    if w is not None:
        w = w.detach().requires_grad_()
        inputs.append(w)
    if callable(backend) or backend == "reference":
        s, v_out = (by_reference if backend == "reference" else backend)(name, x, v, w, **settings)
    else:
        arguments = (x, w) if w is not None else (x,)
        s, v_out = getattr(functional, f"{name}_multistep")(*arguments, v=v, backend=backend, **settings)
    generator = torch.Generator().manual_seed(grad_seed)
    total = 0
    for out, letter in ((s, "s"), (v_out, "v")):
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype).to(out.device)
        if letter in loss:
            # Weighted in the output's own dtype: both backends get the same incoming gradient.
            total = total + (out * weight).sum(dtype=torch.float64)
    return s.detach(), v_out.detach(), torch.autograd.grad(total, inputs)


def assert_close(actual, expected, T):
    """Asserts equality up to the rounding of T time-steps in the state's dtype and one rounding to the storage."""
    assert actual.dtype == expected.dtype
    state_eps = EPS[torch.float64] if expected.dtype == torch.float64 else EPS[torch.float32]
    rounding = 4 * (T + 4) * state_eps + (EPS[expected.dtype] if expected.element_size() == 2 else 0)
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding * max(scale, 1.0))


def compare(name, x, backend="native", **settings):
    """Compares a backend with the reference: spikes and potentials bit for bit, gradients up to rounding."""
    s, v, grads = run(name, x, backend, **settings)
    s_ref, v_ref, grads_ref = run(name, x, "reference", **settings)
    torch.testing.assert_close(s.cpu(), s_ref, rtol=0, atol=0)
    torch.testing.assert_close(v.cpu(), v_ref, rtol=0, atol=0, equal_nan=True)
    if not all(g.isfinite().all() and (g.numel() == 0 or g.abs().max() < 1e30) for g in grads_ref):
        return s, v, grads  # exploding gradients (reset not detached, many time-steps) give inf - inf
    for grad, grad_ref in zip(grads[: 1 + (settings.get("v") is not None)], grads_ref, strict=False):
        assert_close(grad, grad_ref, len(x))
    if settings.get("w") is not None:
        # The gradient of w is a sum over all elements, so the reference's own rounding is part of the difference.
        bound = 64 * EPS[torch.float32 if x.dtype != torch.float64 else x.dtype] * x.numel() ** 0.5
        torch.testing.assert_close(grads[-1], grads_ref[-1], rtol=bound, atol=bound * float(x.numel()) ** 0.5)
    return s, v, grads


def pairwise(*choices):
    """Returns a few combinations of the options that contain every pair of choices of two different options.

    >>> len(pairwise((0, 1), (0, 1), (0, 1)))  # 4 of 8
    4
    """
    everything = list(itertools.product(*choices))
    pairs = list(itertools.combinations(range(len(choices)), 2))
    missing = {(i, j, row[i], row[j]) for row in everything for i, j in pairs}
    chosen = []
    while missing:
        best = max(everything, key=lambda row: sum((i, j, row[i], row[j]) in missing for i, j in pairs))
        missing -= {(i, j, best[i], best[j]) for i, j in pairs}
        chosen.append(best)
    return chosen
