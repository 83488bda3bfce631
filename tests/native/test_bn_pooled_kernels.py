"""The CUDA kernels of batch norm + neuron + connection with a pooled output, on the host: the same bits as neuron and
pooling one after the other, without the bytes between them."""

import itertools
from types import SimpleNamespace

import host
import pytest
import torch
from bn_host import Block
from max_pool_host import ANY, USUAL, Pool, PooledKernels
from test_bn_kernels import CONNECTIONS, NEURONS, operands
from test_bytes import moved

from sewsnn.surrogate import Sigmoid

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def compare(block, dtype, shape, window, seed=0, schedule=0):
    """Runs the pooled kernels and the separate ones. Returns the kernels, for their reports."""
    z, shortcut, weight, bias, leak, _ = operands(block, dtype, shape, seed)
    kernels = PooledKernels(block, window, schedule)
    norm = SimpleNamespace(weight=weight, bias=bias)
    norm.mean, norm.var = kernels.statistics(z)
    whole = kernels.forward(z, shortcut, norm, leak, want_v=False)
    out, positions = kernels.pool.forward(whole.out)
    if len(z) <= 16:
        pooled, found = kernels.pooled_forward(z, shortcut, norm, leak)
        assert torch.equal(pooled, out) and torch.equal(found, positions)
    if block.connect not in (None, "add"):
        return kernels
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64).to(dtype)
    dense = kernels.pool.backward(grad, positions, z.shape)
    apart = kernels.backward(z, shortcut, norm, dense, whole, leak)
    adds = block.connect == "add"
    grad_z, grad_output, sums, grad_leak = kernels.pooled_backward(
        z, norm, grad, positions, whole.checkpoints, leak, dense=adds
    )
    assert not adds or torch.equal(grad_output, dense)
    # The instances may differ in their order of sums.
    scale = float(apart.weight.abs().max() + apart.bias.abs().max()) + 1
    torch.testing.assert_close(sums[0], apart.bias, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(sums[1], apart.weight, rtol=1e-5, atol=1e-6 * scale)
    rounding = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    torch.testing.assert_close(grad_z, apart.z, rtol=2 * rounding, atol=2 * rounding * float(apart.z.abs().max()))
    if leak is not None:
        torch.testing.assert_close(grad_leak, apart.leak, rtol=1e-4, atol=1e-4 * float(apart.leak.abs().max()))
    return kernels


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("window", USUAL)
def test_same_as_one_after_the_other(window, channels_last):
    for i, T in enumerate((1, 3, 4, 5, 8, 16, 17, 33)):
        for j, connect in enumerate(CONNECTIONS):
            turn = i + j
            block = Block(
                **NEURONS[list(NEURONS)[turn % 4]],
                connect=connect,
                channels_last=channels_last,
                v_reset=(0.0, None, -0.25)[turn % 3],
                detach_reset=turn % 2 == 0,
                surrogate=Sigmoid(4.0) if turn % 5 == 2 else Block().surrogate,
            )
            shape = ((2, 8, 6, 6), (1, 12, 7, 5), (2, 3, 4, 8))[turn % 3]
            compare(block, DTYPES[turn % 3], (T, *shape), window, seed=turn, schedule=turn % 2)


@pytest.mark.parametrize("window", ANY[:5])
def test_other_windows(window):
    for i, connect in enumerate((None, "add", "iand")):
        compare(Block(connect=connect, channels_last=i != 1), DTYPES[i], (4, 2, 8, 7, 9), window, seed=i)


def test_every_kernel_is_compared():
    """Compares every instance that the library can launch with the separate kernels."""
    launched = set()
    for dtype, connect, T, C, usual in itertools.product(DTYPES, (None, "add"), (4, 5), (8, 3), (True, False)):
        kernels = compare(Block(connect=connect, detach_reset=usual), dtype, (T, 2, C, 4, 4), (2, 2, 0))
        reports = [report for name, report in kernels.reports.items() if name.startswith("pooled_")]
        launched |= {kernel for report in reports for kernel, _, _ in report["launches"]}
    every = host.kernels(host.library(), "bn_pooled")
    assert launched == every and len(every) == 42


@pytest.mark.parametrize("connect", (None, "add"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_budget(dtype, connect):
    """2x2 windows, channels_last, counted per element of z, in units of its size, with one byte per window:
    statistics 1, forward 1 + 1/4, reduce 1 + 1/4, apply 2 + 1/4; and three times a byte for each four elements. In bf16
    12.25 bytes; with separate kernels 20, and with torch's pooling 25. ADD reads the shortcut and writes its gradient:
    4 more. (A window is read by its four elements: three times from the cache, which this counts once.)"""
    shape = (4, 2, 64, 8, 8)
    elements, size = torch.Size(shape).numel(), dtype.itemsize
    kernels = compare(Block(connect=connect), dtype, shape, (2, 2, 0))
    adds = int(connect == "add")
    count, small = {}, ("mean", "var", "weight", "bias", "sums", "partials", "counters")
    for name in ("statistics", "pooled_forward", "pooled_reduce", "pooled_apply"):
        by_buffer = moved(kernels.reports[name], small)
        for key in ("grad_out", "positions"):
            if name != "pooled_forward" and key in by_buffer:
                assert by_buffer[key] == elements * (size if key == "grad_out" else 1)
                by_buffer[key] //= 4
        count[name] = by_buffer
    window = {"out": elements * size // 4, "positions": elements // 4}
    gradient = {"grad_out": elements * size // 4, "positions": elements // 4}
    shortcut = {"shortcut": elements * size} if adds else {}
    dense = {"grad_shortcut": elements * size} if adds else {}
    assert count["pooled_forward"] == {"z": elements * size} | window | shortcut
    assert count["pooled_reduce"] == {"z": elements * size} | gradient
    assert count["pooled_apply"] == {"z": elements * size, "grad_z": elements * size} | gradient | dense
    in_all = elements * size + sum(sum(by_buffer.values()) for name, by_buffer in count.items() if name != "statistics")
    assert in_all / elements == size * (5.75 + 2 * adds) + 0.75


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_budget_of_pooling_before_the_neuron(dtype):
    """2x2 windows, channels_last, counted per element of z: statistics and pooling 1 + 1/4, forward 1/2, reduce 1/2,
    apply 3/4, the gradient of z 2 + 1/4, and twice a byte for each four elements. In bf16 11 bytes; separate modules
    move 27.5, and one op that pooled inside would move 12.25."""
    shape, C = (4, 2, 64, 8, 8), 64
    elements, size, window = torch.Size(shape).numel(), dtype.itemsize, (2, 2, 0)
    z, _, weight, bias, _, _ = operands(Block(), dtype, shape)
    pool, kernels = Pool("cuda", window, True), PooledKernels(Block(), window)
    pooled, positions, statistics, _ = pool.with_statistics(z, weight)
    norm = SimpleNamespace(mean=statistics[0], var=statistics[1], weight=weight, bias=bias)
    forward = kernels.forward(pooled, None, norm, want_v=False)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = kernels.backward(pooled, None, norm, grad, forward, frozen=True)
    pool.backward(got.z, positions, shape, z, torch.zeros(3, C))
    small = (
        "mean",
        "var",
        "weight",
        "bias",
        "sums",
        "partials",
        "counters",
        "statistics",
        "running_mean",
        "running_var",
    )
    in_all = 0
    for name, report in {**pool.reports, **kernels.reports}.items():
        by_buffer = moved(report, (*small, "affine"))
        if name == "max_pool_backward":  # each window is read by its four elements
            by_buffer["grad_out"] //= 4
            by_buffer["positions"] //= 4
        if name == "max_pool_statistics":  # and the first value of each channel, per block
            origins = by_buffer["x"] - elements * size
            assert 0 <= origins <= size * C * (report["launches"][0][1] + 1)
            by_buffer["x"] = elements * size
        in_all += sum(by_buffer.values())
    assert in_all / elements == size * 5.25 + 0.5
