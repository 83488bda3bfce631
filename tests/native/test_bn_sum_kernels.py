"""The CUDA kernels on the host with the membrane shortcut: u = BN(z) + S and s = SN(u), both results of one op."""

from types import SimpleNamespace

import pytest
import torch
from bn_host import Block, Kernels, affine
from test_bn_kernels import NEURONS, SHAPES, close, moments, operands
from test_bytes import moved

from sewsnn.ops import reference
from sewsnn.ops.reference import state_dtype

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def compare(block, dtype, shape, with_shortcut=True, uses="both", frozen=False, seed=0):
    """Runs the kernels and compares them with the formulas. ``uses``: which result has a gradient."""
    T, state = shape[0], state_dtype(dtype)
    z, _, weight, bias, leak, grad = operands(block, dtype, shape, seed)
    shortcut = operands(block, dtype, shape, seed + 3)[-1] if with_shortcut else None
    grad_sum = operands(block, dtype, shape, seed + 5)[-1] if uses == "both" else None
    kernels = Kernels(block)
    norm = SimpleNamespace(weight=weight, bias=bias)
    norm.mean, norm.var = kernels.statistics(z)
    got = kernels.forward(z, shortcut, norm, leak, T)
    wide = lambda t: None if t is None else t.to(state)  # noqa: E731
    y = affine(wide(z), norm, block).expand(T, *z.shape[1:])
    total = (y if shortcut is None else y + wide(shortcut)).to(dtype)
    assert torch.equal(got.sum, total)
    spikes, v = reference.multistep(wide(total), block.spec(), learnt=leak)
    assert torch.equal(got.out, spikes.to(dtype)) and torch.equal(got.v, v[-1])

    found = kernels.backward_of_sum(z, norm, grad, got, leak, grad_sum, frozen)
    leaves = {name: t.double().requires_grad_() for name, t in (("z", z), ("weight", weight), ("bias", bias))}
    mean, var = (t.double() for t in (norm.mean, norm.var))
    if not frozen:
        moving = moments(leaves["z"], block)
        mean, var = ((t - m).detach() + m for t, m in zip((mean, var), moving, strict=True))
    norm = SimpleNamespace(mean=mean, var=var, weight=leaves["weight"], bias=leaves["bias"])
    y = affine(leaves["z"], norm, block).expand(T, *z.shape[1:])
    u = y + (total.double() - y).detach()  # the values that the neuron has seen
    double = None if leak is None else leak.double().requires_grad_()
    u.retain_grad()
    s, _ = reference.multistep(u, block.spec(), learnt=double)
    if not torch.equal(s, spikes.double()):  # a potential is so near the threshold that rounding decides
        assert seed < 1000, "every seed has such a potential"
        return compare(block, dtype, shape, with_shortcut, uses, frozen, seed + 200)
    loss = (s * grad.double()).sum() + (0 if grad_sum is None else (u * grad_sum.double()).sum())
    loss.backward()
    close(found.shortcut, u.grad, T, 2, "u")
    # The other gradients are computed from the rounded one.
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 0.0)
    terms = T * z[0].numel() // shape[2]
    for name in ("z", "weight", "bias"):
        expected, actual = leaves[name].grad, getattr(found, name)
        if rounding:
            scale = float(expected.abs().max()) + float(u.grad.abs().max()) * (1 if name == "z" else terms**0.5)
            assert (actual.double() - expected).abs().max() <= 8 * rounding * scale, name
        else:
            close(actual, expected, T, 4 if name == "z" else terms, name)
    if leak is not None:
        close(found.leak.reshape(leak.shape), double.grad, T, T * z[0].numel(), "leak")
    return kernels


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("neuron", NEURONS)
def test_forward_and_backward(neuron, channels_last):
    """u is BN(z) + S rounded once, the neuron runs on the rounded u, and its gradient has both terms."""
    for i, T in enumerate((1, 3, 4, 5, 8, 16, 17, 33)):
        turn = i + list(NEURONS).index(neuron) + channels_last
        block = Block(
            **NEURONS[neuron],
            connect="sum",
            channels_last=channels_last,
            v_reset=(0.0, None, -0.25)[turn % 3],
            detach_reset=turn % 2 == 0,
        )
        shape = SHAPES[turn % len(SHAPES)] if T <= 5 else SHAPES[turn % 2 * 3]
        uses = ("both", "spikes")[turn % 2]
        compare(block, DTYPES[turn % 4], (T, *shape), turn % 4 != 3, uses, frozen=turn % 3 == 1, seed=turn)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_still_image(dtype):
    compare(Block(connect="sum", still=True), dtype, (4, 2, 8, 4, 4))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_budget(dtype):
    """13 numbers per element: statistics 1, forward 4, reduce 5, apply 3. In bf16 26 bytes; separate modules with the
    sum in one op of batch norm move 34."""
    shape, C = (4, 3, 64, 28, 28), 64
    kernels = Kernels(Block(connect="sum"))
    z, shortcut, grad, grad_sum = (
        operands(kernels.block, dtype, shape, seed)[i] for seed, i in enumerate((0, 1, -1, -1))
    )
    norm = SimpleNamespace(weight=torch.ones(C), bias=torch.zeros(C))
    norm.mean, norm.var = kernels.statistics(z)
    kernels.backward_of_sum(z, norm, grad, kernels.forward(z, shortcut, norm, want_v=False), None, grad_sum)
    big = ("z", "shortcut", "out", "sum", "grad_out", "grad_skip", "grad_sum", "grad_z")
    elements, moved_in_all = 4 * 3 * 64 * 28 * 28, 0
    for kernel, numbers in {"statistics": 1, "forward": 4, "reduce": 5, "apply": 3}.items():
        report = kernels.reports[kernel]
        by_buffer, blocks = moved(report), report["launches"][0][1]
        count = sum(by_buffer.pop(name, 0) for name in big)
        if kernel == "statistics":  # it also reads the first value of each channel, per block
            assert 0 <= count - elements * dtype.itemsize <= dtype.itemsize * C * (blocks + 1)
            count = elements * dtype.itemsize
        assert count == elements * numbers * dtype.itemsize, kernel
        assert sum(by_buffer.values()) <= (blocks + 1) * (33 * C + 16), kernel
        moved_in_all += count
    assert moved_in_all == 13 * dtype.itemsize * elements
