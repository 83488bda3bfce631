"""The kernels of max pooling, CPU and CUDA, compared with torch's."""

import itertools

import pytest
import torch
from cases import EPS, current
from host import kernels, library, module
from max_pool_host import ANY, USUAL, Pool, out_size
from torch.nn.functional import max_pool2d

from sewsnn.ops.reference import state_dtype

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = ((2, 3, 8, 8), (1, 16, 7, 9), (2, 37, 5, 4), (1, 8, 15, 17), (3, 1, 6, 140))


def kinds():
    return ("cuda", *module().cpu_isas())


def images(shape, dtype, seed=0, equal=False):
    """Random images; ``equal``: with many equal numbers."""
    x = current(shape, torch.float64, seed=seed)
    return (x.round() if equal else x).to(dtype)


def indices_of(positions, shape, window):
    """torch's indices into the plane."""
    kernel, stride, padding = window
    rows, columns = (torch.arange(out_size(size, window)) * stride - padding for size in shape[-2:])
    at = positions.long()
    return (rows[:, None] + at // kernel) * shape[-1] + columns + at % kernel


def fits(shape, window):
    return min(shape[-2:]) + 2 * window[2] >= window[0]


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("window", (*USUAL, *ANY))
def test_like_torch(window, channels_last):
    """Values and positions are torch's, of several equal numbers the first; gradients differ only by rounding."""
    tried = 0
    for isa in kinds():
        for i, shape in enumerate(SHAPES):
            if not fits(shape, window):
                continue
            dtype = DTYPES[(i + tried) % 4]
            x = images(shape, dtype, seed=i, equal=i % 2 == 0)
            pool = Pool(isa, window, channels_last, schedule=i, offset=i % 2)
            out, positions = pool.forward(x)
            leaf = x.double().requires_grad_()
            expected, indices = max_pool2d(leaf, *window, return_indices=True)
            assert torch.equal(out.double(), expected)
            assert torch.equal(indices_of(positions, shape, window), indices)
            grad = current(out.shape, dtype, seed=i + 7, mean=0.0)
            expected.backward(grad.double())
            got = pool.backward(grad, positions, shape)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), leaf.grad, rtol=4 * EPS[dtype], atol=16 * EPS[dtype])
            tried += 1
    assert tried >= 8


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("window", USUAL)
def test_weights_and_the_gradient_of_mean_and_variance(window, channels_last):
    """A negative weight pools by the minimum; a weight of 0 takes the first number in the image. Backward adds
    a + b (x - mean) for each channel."""
    shape = (2, 8, 9, 6)
    for i, isa in enumerate((*kinds(), *kinds())):
        dtype = DTYPES[i % 4]
        state = state_dtype(dtype)
        x = images(shape, dtype, seed=i, equal=True)
        weight = torch.tensor([1, -1, 0, 2.5, -0.25, 0, 1e-30, -3], dtype=state)
        pool = Pool(isa, window, channels_last)
        out, positions = pool.forward(x, weight)
        sign = weight.double().sign().view(-1, 1, 1)
        pooled, indices = max_pool2d(x.double() * sign, *window, return_indices=True)
        assert torch.equal(indices_of(positions, shape, window), indices)
        assert torch.equal(out.double(), x.double().flatten(-2).gather(-1, indices.flatten(-2)).view(out.shape))
        assert torch.equal(out.double() * sign, pooled)
        affine = torch.randn(3, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64).to(state)
        grad = current(out.shape, dtype, seed=i + 7, mean=0.0)
        got = pool.backward(grad, positions, shape, x, affine)
        flat = torch.zeros(*shape[:-2], shape[-2] * shape[-1], dtype=torch.float64)
        a, b, mean = affine.double().view(3, -1, 1, 1)
        expected = flat.scatter_add(-1, indices.flatten(-2), grad.double().flatten(-2)).view(shape)
        expected = expected + a + b * (x.double() - mean)
        torch.testing.assert_close(got.double(), expected, rtol=8 * EPS[dtype], atol=32 * EPS[dtype])


@pytest.mark.parametrize("channels_last", (False, True))
def test_not_a_number(channels_last):
    """As in torch, a NaN is the maximum, and of several NaNs the last; infinities are numbers."""
    x = images((1, 8, 7, 8), torch.float32)
    x[:, ::2, 2, 3:5] = x[:, 1, 0, 0] = x[:, 3, 6, 7] = float("nan")
    x[:, 4, 4:6], x[:, 5] = float("inf"), float("-inf")
    for isa in kinds():
        for window in (*USUAL, (3, 1, 1)):
            out, positions = Pool(isa, window, channels_last).forward(x)
            expected, indices = max_pool2d(x, *window, return_indices=True)
            assert torch.equal(out.nan_to_num(77), expected.nan_to_num(77))
            assert torch.equal(indices_of(positions, x.shape, window), indices)


@pytest.mark.parametrize("window", USUAL)
def test_all_kernels_give_the_same_bits(window):
    for dtype in DTYPES:
        x, results = images((2, 24, 11, 10), dtype), []
        affine = torch.randn(3, 24, generator=torch.Generator().manual_seed(1)).to(state_dtype(dtype))
        for isa in kinds():
            for last in (False, True):
                pool = Pool(isa, window, last)
                out, positions = pool.forward(x)
                grad = pool.backward(images(out.shape, dtype, 3), positions, x.shape, x, affine)
                results.append((out, positions, grad))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("window", USUAL)
def test_statistics_in_the_same_pass(window, channels_last):
    """The CUDA kernel pools as the others do, and takes mean, variance and running statistics of all numbers, those
    beside the last window included."""
    for i, shape in enumerate(((2, 3, 8, 8), (1, 16, 7, 9), (3, 37, 5, 4), (2, 8, 2, 17), (40, 4, 3, 3))):
        dtype = DTYPES[i % 4]
        state = state_dtype(dtype)
        x = images(shape, dtype, seed=i) + 3
        weight = torch.linspace(-1, 1, shape[1], dtype=state) if i % 2 else None
        pool = Pool("cuda", window, channels_last, schedule=i, offset=i % 2)
        out, positions, statistics, running = pool.with_statistics(x, weight)
        expected = pool.forward(x, weight)
        assert torch.equal(out, expected[0]) and torch.equal(positions, expected[1])
        wide, n = x.double(), x.numel() // shape[1]
        mean, var = wide.mean((0, 2, 3)), wide.var((0, 2, 3), correction=0)
        bound = 16 * EPS[state] * n**0.5
        torch.testing.assert_close(statistics, torch.stack([mean, var]).to(state), rtol=bound, atol=bound * 64)
        unbiased = statistics[1] * (n / (n - 1))
        torch.testing.assert_close(running["mean"], 0.9 + 0.1 * statistics[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(running["var"], 1.8 + 0.1 * unbiased, rtol=1e-6, atol=1e-6)


def test_every_kernel_is_compared():
    """Compares every instance that the library can launch with torch."""
    launched = set()
    for dtype, window, channels in itertools.product(DTYPES, (*USUAL, ANY[0]), (8, 3)):
        pool, x = Pool("cuda", window, True), images((2, channels, 7, 6), dtype)
        out, positions = pool.forward(x)
        pool.backward(out, positions, x.shape)
        expected, indices = max_pool2d(x.double(), *window, return_indices=True)
        assert torch.equal(out.double(), expected) and torch.equal(indices_of(positions, x.shape, window), indices)
        if window in USUAL:
            assert torch.equal(pool.with_statistics(x)[0], out)
        launched |= {kernel for report in pool.reports.values() for kernel, _, _ in report["launches"]}
    every = kernels(library(), "max_pool")
    assert launched == every and len(every) == 50


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_bytes_with_statistics(dtype):
    """2x2 windows, channels_last: each number of z is read once, in packs of four."""
    shape, C = (4, 64, 8, 8), 64
    pool = Pool("cuda", (2, 2, 0), True)
    pool.with_statistics(images(shape, dtype))
    report, elements = pool.reports["max_pool_statistics"], torch.Size(shape).numel()
    loads, stores = report["loads"]["x"], report["stores"]
    origins = loads.pop(dtype.itemsize, 0)  # the first number of each channel, per block
    assert dict(loads) == {4 * dtype.itemsize: elements // 4} and origins <= C * (report["launches"][0][1] + 1)
    assert dict(stores["out"]) == {4 * dtype.itemsize: elements // 16} and dict(stores["positions"]) == {
        4: elements // 16
    }


def accesses(report, kind):
    """Returns {bytes of an access: count} by buffer, without the numbers per channel."""
    return {name: dict(sizes) for name, sizes in report[kind].items() if sizes and name != "affine"}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_bytes(dtype):
    """2x2 windows of channels_last images: forward reads each number once, in packs of 16 bytes, and writes the
    result and a byte for each window. Backward reads those (and, for batch norm, x), and writes the gradient, in packs
    of 8."""
    shape, size = (4, 64, 8, 8), dtype.itemsize
    elements = torch.Size(shape).numel()
    pool = Pool("cuda", (2, 2, 0), True)
    x = images(shape, dtype)
    out, positions = pool.forward(x)
    N = 16 // size
    windows = elements // 4 // N
    assert accesses(pool.reports["max_pool"], "loads") == {"x": {16: elements // N}}
    assert accesses(pool.reports["max_pool"], "stores") == {"out": {16: windows}, "positions": {N: windows}}
    pool.backward(out, positions, shape, x, torch.zeros(3, 64, dtype=torch.float32))
    N = 8 // size
    packs = elements // N  # each window is read by its four numbers, three times from the cache
    loads = {"grad_out": {8: packs}, "positions": {N: packs}, "x": {8: packs}}
    assert accesses(pool.reports["max_pool_backward"], "loads") == loads
    assert accesses(pool.reports["max_pool_backward"], "stores") == {"grad_x": {8: packs}}
