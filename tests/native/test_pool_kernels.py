"""Batch norm + neuron + max pooling in one kernel against torch: spikes bit for bit, gradients up to rounding."""

import itertools

import host
import pool_host
import pytest
import torch
from cases import EPS, current
from pool_host import Stem
from torch.nn.functional import batch_norm

from sewsnn import surrogate

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# (function, settings, w of PLIF): tau = 3 divides, tau = 2 multiplies
NEURONS = {
    "if": ("if", {}, None),
    "lif_tau2": ("lif", {"tau": 2.0, "v_reset": None}, None),
    "lif_tau3": ("lif", {"tau": 3.0}, None),
    "plif": ("plif", {"v_reset": -0.25}, 0.3),
}
STEPS = (1, 3, 4, 5, 16)
# images, C, H, W: less than a window; odd and even; more columns than a tile of the CUDA kernels
SHAPES = ((1, 1, 1, 1), (3, 3, 2, 3), (2, 8, 7, 7), (1, 12, 8, 8), (1, 64, 16, 20), (1, 3, 33, 70))
WIDE = ((1, 2, 5, 300), (1, 8, 4, 131))
ORDERS = (torch.contiguous_format, torch.channels_last)
KERNELS = ("cuda", *host.module().cpu_isas())


def stem(shape, dtype=torch.float32, order=torch.channels_last, neuron="if", T=4, seed=0, mean=0.8, **more):
    name, settings, w = NEURONS[neuron]
    state = torch.float64 if dtype == torch.float64 else torch.float32
    z = current(shape, dtype, seed=seed, mean=mean).contiguous(memory_format=order)
    c = shape[1]
    norm = [current((c,), state, scale=0.2, mean=m, seed=seed + 1 + i) for i, m in enumerate((0.3, 1.2, 1.1, 0.4))]
    norm[1] = norm[1].abs() + 0.1
    w = None if w is None else torch.tensor(w)
    return Stem(name, z, T, more.pop("norm", norm), w, **(settings | more))


def close(actual, expected, scale, T):
    """To the rounding of T time-steps, of a norm, and once in the storage. ``scale``: of the largest term."""
    state = EPS[torch.float64 if actual.dtype == torch.float64 else torch.float32]
    rounding = 8 * (T + 8) * state * max(1.0, float(scale))
    relative = EPS[actual.dtype] if actual.element_size() == 2 else rounding
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=relative, atol=rounding)


def compare(case, kernels, schedule=0, sums=True):
    """Runs forward and both backward passes, and returns the results of the kernels."""
    grad_out = current(case.out_shape, case.z.dtype, mean=0.1, seed=7)
    expected, grad_y, xhat, scale, grad_leak = case.expected(grad_out)
    out = case.forward(kernels, schedule)
    assert torch.equal(out.to(case.state), expected)

    given, leak = case.reduce(kernels, grad_out, schedule)
    terms = torch.stack([grad_y, grad_y * xhat]).double()
    total, size = terms.sum((1, 3, 4)), terms.abs().sum((1, 3, 4))
    state = EPS[torch.float64 if case.state == torch.float64 else torch.float32]
    assert ((given.double() - total).abs() <= (8 * (case.T + 8) + 64) * state * (size + 1)).all()
    if leak is not None:
        # Most of the difference comes from the reference, which sums all elements in another order.
        bound = 64 * state * (1 + float(size[0].sum())) * case.T
        assert abs(float(leak - grad_leak)) <= bound

    count = case.T * case.z.numel() / case.z.shape[1]
    grad_z = case.apply(kernels, grad_out, given if sums else None, count, schedule)
    a, b = (given / count).reshape(2, -1, 1, 1) if sums else (0, 0)
    close(grad_z, scale * (grad_y - a - xhat * b), (scale * grad_y).abs().max() * 4, case.T)
    return out, given, leak, grad_z


def same(results, others):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(results, others, strict=True))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(kernels, dtype, neuron):
    """Every shape in both memory orders, with every number of time-steps."""
    steps = itertools.cycle(STEPS)
    for i, (shape, order) in enumerate(itertools.product(SHAPES, ORDERS)):
        compare(stem(shape, dtype, order, neuron, next(steps), seed=i, detach_reset=i % 3 > 0), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_images(kernels, dtype):
    """Several tiles of columns."""
    for shape, order, T in itertools.product(WIDE, ORDERS, (4, 5)):
        compare(stem(shape, dtype, order, "if", T), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_options(kernels):
    """Without a norm, its weight, its bias, or statistics that depend on z; and with every surrogate."""
    full = stem((2, 8, 9, 6)).norm
    norms = ([None] * 4, full, [*full[:2], None, None], [*full[:3], None], [*full[:2], None, full[3]])
    for norm, order, T in itertools.product(norms, ORDERS, (2, 6)):
        compare(stem((2, 8, 9, 6), order=order, neuron="lif_tau3", T=T, norm=norm), kernels, sums=norm[0] is not None)
    names = [name for name in surrogate.__all__ if name != "Surrogate"]
    for name, decay_input, T in zip(names, itertools.cycle((True, False)), itertools.cycle((4, 5, 3)), strict=False):
        sigma = getattr(surrogate, name)()
        compare(stem((1, 8, 6, 5), neuron="plif", T=T, decay_input=decay_input, surrogate_function=sigma), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_ties(kernels):
    """Neurons that never or always fire: the first position of each window gets the gradient."""
    for order, shape, T in itertools.product(ORDERS, ((1, 8, 7, 8), (1, 3, 6, 5)), (4, 7)):
        for bias in (-50.0, 50.0):
            case = stem(shape, torch.float64, order, "if", T)
            case.norm[3] = torch.full_like(case.norm[3], bias)
            out, *_ = compare(case, kernels)
            assert (out == (bias > 0)).all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("offset", (1, 2, 4))
def test_misaligned_views(kernels, offset):
    for dtype, order, T in itertools.product(DTYPES, ORDERS, (4, 5)):
        compare(stem((2, 8, 6, 7), dtype, order, "lif_tau2", T, offset=offset), kernels)


def test_batch_norm():
    """With the statistics of z itself, apply gives the gradient of torch's batch norm."""
    for kernels, order in itertools.product(KERNELS, ORDERS):
        case = stem((3, 4, 9, 8), torch.float64, order)
        case.norm[0], case.norm[1] = case.z.mean((0, 2, 3)), case.z.var((0, 2, 3), unbiased=False)
        grad_out = current(case.out_shape, torch.float64, seed=7)
        sums, _ = case.reduce(kernels, grad_out)
        grad_z = case.apply(kernels, grad_out, sums, case.z.numel() / 4)
        z, weight, bias = (t.detach().requires_grad_() for t in (case.z, *case.norm[2:]))
        y = batch_norm(z, None, None, weight, bias, training=True, eps=case.eps)
        grads = torch.autograd.grad(case.neuron(y.expand(case.T, *y.shape), None), (z, bias, weight), grad_out)
        for actual, expected in zip((grad_z, *sums), grads, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_instruction_sets_give_the_same_bits(dtype):
    """The result does not depend on the order of blocks."""
    for shape, order, T in itertools.product(((2, 40, 9, 7), (1, 3, 12, 13)), ORDERS, (4, 16)):
        case = stem(shape, dtype, order, "plif", T, detach_reset=False)
        first = compare(case, "generic")
        for isa, schedule in itertools.product(host.module().cpu_isas(), (0, 1)):
            assert same(first, compare(case, isa, schedule)), isa


def test_any_order_of_threads_gives_the_same_bits():
    for shape, order, T in itertools.product(((1, 24, 35, 9), (1, 2, 5, 150)), ORDERS, (4, 5)):
        case = stem(shape, torch.float32, order, "plif", T)
        first = compare(case, "cuda")
        for schedule in (1, 7, 8):
            assert same(first, compare(case, "cuda", schedule))


def test_every_kernel_is_compared():
    """Tests every kernel of the stem that the library can launch."""
    pool_host.reports.clear()
    for dtype, order, T in itertools.product(DTYPES, ORDERS, (4, 5)):
        compare(stem((1, 8, 4, 4), dtype, order, "if", T), "cuda")
    every = host.kernels(host.library(), "pool")
    assert len(every) > 40
    assert {kernel for report in pool_host.reports for kernel, _, _ in report["launches"]} == every


def test_cpu_and_cuda_agree():
    """Equal bit for bit, because the source is the same; only sums have another order."""
    for dtype, order, neuron in itertools.product(DTYPES, ORDERS, NEURONS):
        case = stem((2, 8, 9, 6), dtype, order, neuron, 4, detach_reset=False)
        grad_out = current(case.out_shape, dtype, seed=7)
        sums, _ = case.reduce("generic", grad_out)
        assert torch.equal(case.forward("generic"), case.forward("cuda"))
        assert torch.equal(*(case.apply(kernels, grad_out, sums, 100) for kernels in ("generic", "cuda")))
