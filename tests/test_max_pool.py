"""The op of max pooling: torch's values and gradients, one byte per window."""

import pytest
import torch
from cases import EPS, current
from torch import nn
from torch.nn.functional import max_pool2d

from sewsnn.ops.max_pool import Window, max_pool, pooled_batch, pooled_input, runs

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WINDOWS = (Window(3, 2, 1), Window(2, 2, 0), Window(3, 3, 0), Window(2, 1, 1), Window(5, 3, 2), Window(15, 7, 7))


def images(shape, dtype=torch.float32, device="cpu", channels_last=False, seed=0):
    x = current(shape, torch.float64, seed=seed).round().to(dtype).to(device)  # with equal numbers
    return x.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else x


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_like_torch(window, channels_last, device):
    for i, dtype in enumerate(DTYPES):
        for shape in ((3, 2, 8, 9, 8), (2, 5, 16, 7), (1, 1, 30, 130)):
            x = images(shape, dtype, device, channels_last, i).requires_grad_()
            merged = x.flatten(0, -4)
            expected = max_pool2d(merged, *window).unflatten(0, shape[:-3])
            out = max_pool(x, window)
            assert torch.equal(out, expected) and out.stride() == expected.stride()
            grad = current(out.shape, dtype, seed=3, mean=0.0).to(device)
            (found,), (wanted,) = (torch.autograd.grad(y, x, grad) for y in (out, expected))
            torch.testing.assert_close(found, wanted, rtol=8 * EPS[dtype], atol=16 * EPS[dtype])
            if dtype in (torch.float32, torch.float64):
                assert torch.equal(found, wanted)


def test_strides_that_are_not_dense(device):
    x = images((2, 4, 8, 12), device=device)
    for view in (x[:, :, :, ::2], x.transpose(2, 3), x[:, ::2], x[:1].expand(3, -1, -1, -1)):
        leaf = view.detach().requires_grad_()
        out, expected = max_pool(leaf, WINDOWS[0]), max_pool2d(leaf, 3, 2, 1)
        assert torch.equal(out, expected)
        grad = current(out.shape, seed=3, device=device)
        assert torch.equal(*(torch.autograd.grad(y, leaf, grad)[0] for y in (out, expected)))
        spread = grad[..., :1, :1].expand(grad.shape)
        found = [torch.autograd.grad(max_pool(leaf, WINDOWS[0]), leaf, g)[0] for g in (spread, spread.clone())]
        assert torch.equal(*found)


def test_second_derivative(device):
    """The gradient is linear in the gradient of the result, and can be differentiated."""
    for window in WINDOWS[:4]:
        x = images((2, 3, 6, 7), torch.float64, device).requires_grad_()
        results = []
        for pool in (max_pool, lambda x, w: max_pool2d(x, *w)):
            y = pool(x, window)
            (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            results.append((first, torch.autograd.grad(first.square().sum(), x)[0]))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("batch", (False, True))
def test_gradients_of_a_norms_input(batch, device):
    """The statistics and the pooled input of a batch norm, each alone and both, as torch differentiates them."""
    for i, window in enumerate(WINDOWS[:3]):
        z = images((3, 2, 4, 7, 8), torch.float64, device, i % 2).requires_grad_()
        weight = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64, device=device)
        mean, var = z.mean((0, 1, 3, 4)), z.var((0, 1, 3, 4), correction=0)
        statistics, sign = torch.stack([mean, var]), weight.sign().view(-1, 1, 1)
        _, indices = max_pool2d((z * sign).flatten(0, 1), *window, return_indices=True)
        pooled = z.flatten(0, 1).flatten(-2).gather(-1, indices.flatten(-2)).view(3, 2, *indices.shape[1:])
        if batch:
            found = pooled_batch(z, weight, None, window)
        else:
            found = pooled_input(z, statistics.detach(), weight, window, training=True, count=z.numel() / 4)
        for uses in ((0,), (1,), (0, 1)):
            grads = []
            for results in (found, (pooled, statistics)):
                loss = sum((results[k] * current(results[k].shape, torch.float64, device, seed=k)).sum() for k in uses)
                grads.append(torch.autograd.grad(loss, z, retain_graph=True)[0])
            torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)


def test_what_is_kept(device):
    """One byte for each window; torch keeps its input, and an int64 for each window."""
    kept = []
    x = images((4, 2, 8, 16, 16), device=device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = max_pool(x, WINDOWS[1])
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, out.numel())]


def test_opcheck(device):
    """torch's own checks of schemas, fake kernels and autograd's registration."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for channels_last in (False, True):
        x = images((2, 3, 6, 9, 8), torch.float32, device, channels_last)
        weight, affine = torch.ones(6, device=device), torch.ones(3, 6, device=device)
        for window in WINDOWS[:3]:
            pool, backward = torch.ops.sewsnn.max_pool.default, torch.ops.sewsnn.max_pool_backward.default
            torch.library.opcheck(pool, (x.clone().requires_grad_(), None, *window, True))
            torch.library.opcheck(pool, (x, weight, *window, False), test_utils=tests)
            out, positions = pool(x, weight, *window, True)
            running, counted = torch.ones(2, 6, device=device), torch.tensor(3, device=device)
            given = (x, weight, *running, counted, (0.1, *window, True))
            torch.library.opcheck(torch.ops.sewsnn.max_pool_statistics.default, given, test_utils=tests)
            torch.library.opcheck(backward, (out, positions, x, affine, 9, 8, *window), test_utils=tests)


def test_arguments_are_checked(device):
    x = images((2, 4, 6, 6), device=device)
    pool, backward = torch.ops.sewsnn.max_pool, torch.ops.sewsnn.max_pool_backward
    for window, message in (
        ((0, 2, 0), "kernel must be 1 to 15"),
        ((16, 2, 0), "kernel must be 1 to 15"),
        ((2, 0, 0), "stride must be"),
        ((2, 2, 2), "padding must be"),
        ((2, 2, -1), "padding must be"),
        ((7, 1, 0), "no window"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pool(x, None, *window, True)
    for wrong, message in (
        ((x.int(), None), "float"),
        ((x[0, 0], None), r"\[\.\.\., C, H, W\]"),
        ((x, torch.ones(3, device=device)), "weight must have 4 numbers"),
        ((x, torch.ones(4, dtype=torch.float64, device=device)), "weight must have 4 numbers"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pool(*wrong, 2, 2, 0, True)
    out, positions = pool(x, None, 2, 2, 0, True)
    affine = torch.ones(3, 4, device=device)
    for wrong, message in (
        ((out, positions, None, None, 8, 6), "positions must be those"),
        ((out, positions.int(), None, None, 6, 6), "positions must be those"),
        ((out[:1], positions, None, None, 6, 6), "grad_out must have"),
        ((out, positions, x, None, 6, 6), "belong together"),
        ((out, positions, x[:1], affine, 6, 6), "x must have"),
        ((out, positions, x, affine[:2], 6, 6), "affine must have 12"),
        ((out, positions, None, None, -1, 6), "must not be negative"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(*wrong, 2, 2, 0)
    with pytest.raises(RuntimeError, match="need_positions=True"):
        pool(x.requires_grad_(), None, 2, 2, 0, False)[0].sum().backward()


def test_positions_of_somebody_else_reach_no_other_memory(device):
    """Positions that max_pool has not written give wrong gradients, and nothing else."""
    grad = torch.ones(2, 3, 3, 3, device=device)
    for window in (WINDOWS[0], WINDOWS[1]):
        for value in (0, 3, 8, 9, 255):
            positions = torch.full((2, 3, 3, 3), value, dtype=torch.uint8, device=device)
            got = torch.ops.sewsnn.max_pool_backward(grad, positions, None, None, 6, 6, *window)
            assert got.shape == (2, 3, 6, 6) and got.sum() <= grad.sum()


def test_windows_of_modules():
    def of(*args, **kwargs):
        pool = nn.MaxPool2d(*args, **kwargs)
        return Window.of(pool.kernel_size, pool.stride, pool.padding)

    assert of(2) == of((2, 2)) == Window(2, 2, 0) and of(3, 2, 1) == of((3, 3), (2, 2), (1, 1)) == Window(3, 2, 1)
    assert of((2, 3)) is of(16) is of(3, (1, 2)) is of(2, padding=(0, 1)) is None
    assert not runs(images((2, 1, 6)), Window(2, 2, 0)) and not runs(images((2, 6)), Window(1, 1, 0))
    assert not runs(images((2, 0, 6, 6)), Window(2, 2, 0)) and not runs(images((2, 3, 6, 6)).int(), Window(2, 2, 0))
