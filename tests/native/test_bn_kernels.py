"""Batch norm + neuron + connection on CUDA, run on the host, against the formulas (bn_host.formula)."""

import itertools
from types import SimpleNamespace

import host
import pytest
import torch
from bn_host import Block, Kernels, flat, formula
from cases import EPS, current

from sewsnn.ops.neuron import checkpoint_count
from sewsnn.ops.reference import state_dtype
from sewsnn.surrogate import ATan, Sigmoid

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NEURONS = {
    "if": {},
    "lif_tau2": {"neuron": "lif", "tau": 2.0},
    "lif_tau3": {"neuron": "lif", "tau": 3.0},
    "plif": {"neuron": "plif", "leak": 0.6},
}
CONNECTIONS = (None, "add", "and", "iand", "add_before")


def memory_order(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


def operands(block, dtype, shape, seed=0):
    """z [T or 1, ...], shortcut, weight and bias, leak of the block, gradient: everything random."""
    T, images, C, height, width = shape
    state = state_dtype(dtype)
    z = current((1 if block.still else T, images, C, height, width), dtype, scale=2.0, mean=0.7, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.rand(C, generator=generator, dtype=torch.float64).add(0.7).to(state) if block.affine else None
    bias = torch.rand(C, generator=generator, dtype=torch.float64).to(state) if block.affine else None
    shortcut = None
    if block.connect is not None:  # spikes, mostly, as in a SEW network, and a few larger numbers
        shortcut = (torch.rand(shape, generator=generator) < 0.4).to(dtype) * (1 + (torch.arange(C) % 2)).view(-1, 1, 1)
        shortcut = shortcut.to(dtype)
    leak = None if block.leak is None else torch.tensor(block.leak, dtype=state)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return z, shortcut, weight, bias, leak, grad


def moments(z, block):
    """Mean and biased variance by channel in fp64."""
    z = z.double()
    return z.mean((0, 1, 3, 4)), z.var((0, 1, 3, 4), correction=0)


def compare_forward(got, z, shortcut, norm, leak, block, T):
    """out and v bit for bit: the same operations, one after the other, in the state's type."""
    state = state_dtype(z.dtype)
    wide = lambda t: None if t is None else t.to(state)  # noqa: E731
    out, v, a = formula(wide(z), wide(shortcut), norm, leak, block, T)
    assert torch.equal(got.out, out.to(z.dtype))
    if block.spiking and got.v is not None:
        assert torch.equal(got.v, v)
    if got.bits is not None:
        packed = flat(a, block).reshape(T, -1, 8).to(torch.int32) * 2 ** torch.arange(8)
        assert torch.equal(got.bits, packed.sum(-1).to(torch.uint8))
    if got.checkpoints is not None:
        assert len(got.checkpoints) == checkpoint_count(T)


def close(actual, expected, T, terms=1, name=""):
    """To the rounding of a recurrence of T time-steps and of a sum, in the state's type; once more in the storage's."""
    state = EPS[torch.float64] if actual.dtype == torch.float64 else EPS[torch.float32]
    storage = EPS[actual.dtype] if actual.element_size() == 2 else 0
    # A sum's rounding errors add up like a random walk; the sums in the reference are in fp64.
    bound = 8 * (T + 8) * state * terms**0.5 + storage
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.double(), expected.double(), rtol=bound, atol=bound * scale, msg=lambda m: f"{name}: {m}")


def compare(block, dtype, shape, layout=None, skip=False, bits=False, frozen=False, grad=None, schedule=0, seed=0):
    """All four kernels, one after the other, each against the formulas."""
    T = shape[0]
    kernels = Kernels(block, layout, schedule)
    z, shortcut, weight, bias, leak, random_grad = operands(block, dtype, shape, seed)
    grad = random_grad if grad is None else grad
    state, n = state_dtype(dtype), z.numel() // shape[2]
    norm = SimpleNamespace(mean=None, var=None, weight=weight, bias=bias)
    if block.normalised:
        mean, var = moments(z, block)
        norm.mean, norm.var = kernels.statistics(z)
        # Sums of n distances from the channel's first value in the state's type.
        bound = 16 * EPS[state] * n**0.5
        torch.testing.assert_close(norm.mean, mean.to(state), rtol=bound, atol=bound * 8)
        torch.testing.assert_close(norm.var, var.to(state), rtol=bound, atol=bound * 64)
    forward = kernels.forward(z, shortcut, norm, leak, T, bits=bits)
    compare_forward(forward, z, shortcut, norm, leak, block, T)

    skip_grad = operands(block, dtype, shape, seed + 5)[-1] if skip else None
    got = kernels.backward(z, shortcut, norm, grad, forward, leak, skip_grad, frozen, T)
    total = grad
    if skip:
        total = (grad.to(state) + skip_grad.to(state)).to(dtype)
        assert torch.equal(got.sum, total)

    # The reference's gradients: autograd in fp64 over the same spikes, with mean and var as functions of z or constants.
    leaves = {"z": z.double().requires_grad_()}
    for name, t in (("shortcut", shortcut), ("weight", weight), ("bias", bias), ("leak", leak)):
        leaves[name] = None if t is None else t.double().requires_grad_()
    if block.normalised and not frozen:
        mean, var = moments(leaves["z"], block)
        # The values are those the kernels have, so that the same neurons fire; the gradients are those of the moments.
        mean, var = (norm.mean.double() - mean).detach() + mean, (norm.var.double() - var).detach() + var
    else:
        mean, var = (None if t is None else t.double() for t in (norm.mean, norm.var))
    double = SimpleNamespace(mean=mean, var=var, weight=leaves["weight"], bias=leaves["bias"])
    out, _, a = formula(leaves["z"], leaves["shortcut"], double, leaves["leak"], block, T)
    state_of = lambda t: None if t is None else t.to(state)  # noqa: E731
    a_state = formula(state_of(z), state_of(shortcut), norm, leak, block, T)[2]
    if block.spiking and not torch.equal(a_state.double(), a.detach()):
        pytest.fail("a potential on the threshold itself: choose another seed")
    (out * total.double()).sum().backward()
    wanted = lambda name: leaves[name] is not None and leaves[name].grad is not None  # noqa: E731
    close(got.z, leaves["z"].grad, T, 4, "z")
    terms = T * z[0].numel() // shape[2]
    if block.normalised and block.affine:
        close(got.weight, leaves["weight"].grad, T, terms, "weight")
        close(got.bias, leaves["bias"].grad, T, terms, "bias")
    if block.connect is not None:
        close(got.shortcut if got.shortcut is not None else total, leaves["shortcut"].grad, T, 1, "shortcut")
    if wanted("leak") and block.spiking:
        close(got.leak.reshape(()), leaves["leak"].grad, T, T * z[0].numel(), "leak")
    return forward, got, kernels


SHAPES = [  # images, channels, height, width: odd counts, whole packs, several lines of channels, planes of any size
    (2, 3, 3, 3),
    (1, 5, 7, 7),
    (2, 12, 8, 8),
    (2, 8, 1, 1),
    (1, 64, 3, 3),
    (2, 72, 7, 7),
]


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("connect", CONNECTIONS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_forward_and_backward(neuron, connect, channels_last):
    """Every neuron and connection; dtypes, T, shapes and options take turns."""
    turns = itertools.cycle(SHAPES)
    for i, (dtype, T) in enumerate(itertools.product(DTYPES, (1, 3, 4, 5, 16, 17, 33))):
        shape = next(turns) if T <= 5 else SHAPES[i % 2 * 3]
        block = Block(
            **NEURONS[neuron],
            connect=connect,
            channels_last=channels_last,
            v_reset=(0.0, None, -0.25)[i % 3],
            detach_reset=i % 2 == 0,
            decay_input=i % 4 < 2,
            surrogate=(ATan(2.0), Sigmoid(4.0))[i % 5 == 0],
        )
        compare(block, dtype, (T, *shape), skip=i % 3 == 1, seed=i)
