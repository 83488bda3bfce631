"""The CUDA kernels of batch norm + neuron + connection on the host, compared with the formulas (bn_host.formula)."""

import itertools
import re
from types import SimpleNamespace

import host
import kinds
import pytest
import torch
from bn_host import Block, Kernels, flat, formula
from cases import EPS, current

from sewsnn import surrogate
from sewsnn.ops.neuron import checkpoint_count
from sewsnn.ops.reference import state_dtype
from sewsnn.surrogate import ATan, Sigmoid, UnitATan

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
    leak = None if block.leak is None else torch.as_tensor(block.leak, dtype=state)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return z, shortcut, weight, bias, leak, grad


def moments(z, block):
    """Mean and biased variance of each channel in fp64."""
    z = z.double()
    return z.mean((0, 1, 3, 4)), z.var((0, 1, 3, 4), correction=0)


def compare_forward(got, z, shortcut, norm, leak, block, T):
    """out and v are equal bit for bit: the formulas do the same operations in the state's type."""
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
        assert len(got.checkpoints) == block.states() * checkpoint_count(T)


def close(actual, expected, T, terms=1, name=""):
    """To the rounding of a recurrence of T time-steps and of a sum, in the state's type; once more in the storage's."""
    state = EPS[torch.float64] if actual.dtype == torch.float64 else EPS[torch.float32]
    storage = EPS[actual.dtype] if actual.element_size() == 2 else 0
    # A sum's rounding errors add up like a random walk; the sums in the reference are in fp64.
    bound = 8 * (T + 8) * state * terms**0.5 + storage
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=bound, atol=bound * scale, msg=lambda m: f"{name}: {m}"
    )


def compare(block, dtype, shape, layout=None, skip=False, bits=False, frozen=False, grad=None, schedule=0, seed=0):
    """Runs all four kernels and compares each with the formulas."""
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

    # Autograd in fp64 over the same spikes, with mean and var as functions of z, or constants.
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
        close(got.leak.reshape(leak.shape), leaves["leak"].grad, T, T * z[0].numel(), "leak")
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
    """Every neuron and connection with every T; dtypes, shapes and options alternate."""
    first = list(NEURONS).index(neuron) + CONNECTIONS.index(connect) + channels_last
    for i, T in enumerate((1, 3, 4, 5, 16, 17, 33)):
        turn = first + i
        block = Block(
            **NEURONS[neuron],
            connect=connect,
            channels_last=channels_last,
            v_reset=(0.0, None, -0.25)[turn % 3],
            detach_reset=turn % 2 == 0,
            decay_input=turn % 4 < 2,
            surrogate=(ATan(2.0), Sigmoid(4.0))[turn % 5 == 0],
        )
        shape = SHAPES[turn % len(SHAPES)] if T <= 5 else SHAPES[turn % 2 * 3]
        compare(block, DTYPES[turn % 4], (T, *shape), skip=turn % 3 == 1, seed=turn)


def instance(report):
    """The template arguments of the first kernel that a call launched: storage, K, N, Shortcut, Usual."""
    name = report["launches"][0][0]
    storage = next((s for s in ("BFloat16", "Half") if s in name), "float")
    return storage, *(int(number) for number in re.findall(r"L[ib](\d+)E", name.split("kernelI", 1)[-1]))


# The options of which a change makes the general instances necessary.
UNUSUAL = [{"v_reset": None}, {"v_reset": -0.25}, {"v_reset": -0.0}, {"detach_reset": False}, {"decay_input": False}]
# Surrogates that the instances for the usual options run without, and with, choosing among the surrogates.
SURROGATES = [{"surrogate": UnitATan(1.0)}, {"surrogate": Sigmoid(4.0)}]


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("connect", CONNECTIONS)
@pytest.mark.parametrize("T", (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17))
def test_chunks(T, connect, channels_last):
    """K = 4, 8 or 16 time-steps per chunk, and the instance for the usual options where there is one."""
    shape = (T, 1, 8, 4, 4)
    reads = connect not in (None, "add")
    types = {"Half": torch.float16, "BFloat16": torch.bfloat16, "float": torch.float32}
    for i, neuron in enumerate(NEURONS):
        dtype = list(types)[(i + T) % 3]
        for options in ({}, SURROGATES[(i + T) % 2], UNUSUAL[(i + T) % len(UNUSUAL)]):
            changed = options and options in UNUSUAL and not (neuron == "if" and "decay_input" in options)
            is_usual = not reads and not changed
            K = 4 if T <= 4 else 8 if T <= 8 and (dtype != "float" or is_usual) else 16
            block = Block(**NEURONS[neuron], **options, connect=connect, channels_last=channels_last)
            *_, kernels = compare(block, types[dtype], shape, skip=i % 2 == 0, seed=T + i)
            for name in ("reduce", "apply"):
                # K = 16 has four neurons per thread where the registers suffice: in half precision in apply with the
                # usual options. In fp32 with a shortcut they do not suffice for two.
                N = 4 if K == 4 or (dtype != "float" and (K == 8 or (is_usual and name == "apply"))) else 2
                N = 1 if K == 16 and dtype == "float" and reads else N
                assert instance(kernels.reports[name]) == (dtype, K, N, reads, is_usual), (neuron, options, name)


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shape(dtype, channels_last):
    for i, shape in enumerate(SHAPES):
        compare(Block(connect="add", channels_last=channels_last), dtype, (4, *shape), seed=i)


@pytest.mark.parametrize("connect", CONNECTIONS)
def test_without_a_neuron(connect):
    """A is the normalised z itself: the end of a residual block that sums currents."""
    for i, dtype in enumerate(DTYPES):
        block = Block(connect=connect, spiking=False, channels_last=i % 2 == 0)
        compare(block, dtype, (4 if i % 2 else 5, 2, 8, 3, 3), skip=i == 1, seed=i)


@pytest.mark.parametrize("neuron", NEURONS)
def test_other_norms(neuron):
    """Cases: no weight and bias, constant statistics, no batch norm."""
    for i, T in enumerate((4, 17)):
        for dtype in DTYPES[i::2]:
            shape = (T, 1, 12, 3, 3)
            compare(Block(**NEURONS[neuron], affine=False), dtype, shape)
            compare(Block(**NEURONS[neuron], connect="and"), dtype, shape, frozen=True)
            compare(Block(**NEURONS[neuron], connect="iand", normalised=False), dtype, shape, skip=True)


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_still_image(dtype, channels_last):
    """One z for all time-steps: its gradient is one row, the sum over T."""
    for T, C, connect in ((4, 8, None), (5, 3, "add"), (17, 8, "and")):
        block = Block(**NEURONS["lif_tau3"], still=True, connect=connect, channels_last=channels_last)
        _, got, kernels = compare(block, dtype, (T, 2, C, 4, 4), seed=T)
        assert got.z.shape == (1, 2, C, 4, 4)
        assert sum(size * n for size, n in kernels.reports["apply"]["stores"]["grad_z"].items()) == got.z.nbytes


@pytest.mark.parametrize("offset, gap", [(1, 0), (0, 1), (3, 5), (8, 8), (4, 4), (2, 2)])
def test_misaligned_views(offset, gap):
    """Misaligned operands, and rows with gaps between them."""
    for i, (dtype, T) in enumerate(itertools.product(DTYPES, (4, 17))):
        block = Block(**NEURONS["plif"], connect=CONNECTIONS[i % 5], channels_last=i % 3 != 0)
        compare(block, dtype, (T, 1, 16, 4, 2), host.Layout(offset, gap), skip=i % 2 == 0, seed=i)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_spikes(dtype):
    """A byte comes from one thread, from two neighbours, or from a second kernel if more than two threads share it."""
    cases = (8, 3, 3, True), (8, 4, 4, False), (12, 2, 2, True), (72, 2, 1, True), (16, 7, 7, False), (4, 6, 2, False)
    for C, height, width, channels_last in cases:
        for T in (3, 17):
            block = Block(**NEURONS["lif_tau2"], channels_last=channels_last)
            compare(block, dtype, (T, 2, C, height, width), bits=True)


def test_packed_spikes_of_misaligned_views():
    for dtype in DTYPES:
        compare(Block(), dtype, (4, 1, 16, 2, 2), host.Layout(1, 0), bits=True)


@pytest.mark.parametrize("T", (1, 4, 17))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_sums(dtype, T):
    """One number for all neurons, the same for all time-steps or not."""
    for C, steps in ((16, 1), (5, T)):
        shape = (T, 1, C, 2, 2)
        grad = (torch.arange(1, steps + 1) / 4).to(dtype).view(-1, 1, 1, 1, 1).expand(shape)
        compare(Block(**NEURONS["lif_tau2"], connect="add"), dtype, shape, grad=grad, skip=C == 5)


@pytest.mark.parametrize("detach", (True, False))
@pytest.mark.parametrize(
    "sigma", [getattr(surrogate, name)() for name in surrogate.__all__ if name != "Surrogate"], ids=str
)
def test_surrogates(sigma, detach):
    block = Block(**NEURONS["lif_tau2"], surrogate=sigma, detach_reset=detach)
    for i, T in enumerate((4, 16)):
        compare(block, DTYPES[i], (T, 1, 8, 2, 2), seed=i)


# ---- statistics


def test_statistics_of_many_elements():
    """Several blocks along rows and along columns, and more partial sums than threads that add them."""
    for C, shape, channels_last in ((3, (64, 48), True), (160, (8, 8), True), (2, (300, 70), False)):
        for dtype in (torch.float32, torch.bfloat16):
            z = current((1, 2, C, *shape), dtype, scale=3.0, mean=-20.0)
            mean, var = moments(z, None)
            got = Kernels(Block(channels_last=channels_last)).statistics(z)
            torch.testing.assert_close(got[0], mean.float(), rtol=1e-6, atol=0)
            # In fp32 sum(z^2) - mean^2 would have lost three of seven digits.
            torch.testing.assert_close(got[1], var.float(), rtol=1e-5, atol=0)


def test_constant_channels_have_no_variance():
    z = torch.tensor([0.1, -3.0, 1e4]).view(1, 1, 3, 1, 1).expand(4, 2, 3, 5, 5)
    got = Kernels(Block()).statistics(z)
    assert torch.equal(got, torch.tensor([[0.1, -3.0, 1e4], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
def test_statistics_that_are_not_finite(bad):
    """A value that is not finite affects only its channel, and the running statistics stay unchanged."""
    for position in (0, 70):
        z = current((1, 1, 9, 10, 10))
        z[0, 0, 2].view(-1)[position] = bad
        kernels = Kernels(Block())
        got = kernels.statistics(z)
        assert not got[:, 2].isfinite().any()
        assert got[:, [0, 1, *range(3, 9)]].isfinite().all()
        running = torch.arange(18.0).view(2, 9)
        assert torch.equal(update(got, running), torch.arange(18.0).view(2, 9))


def update(statistics, running, momentum=0.1, count=100.0):
    running = running.clone()
    arguments = {"statistics": statistics.numpy(), "momentum": momentum, "count": count}
    arguments |= {"running_mean": running[0].numpy(), "running_var": running[1].numpy()}
    host.module().bn_update(arguments)
    return running


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("C", (1, 9, 1500))
def test_running_statistics(C, dtype):
    generator = torch.Generator().manual_seed(C)
    new, old = torch.rand((2, 2, C), generator=generator, dtype=dtype)
    got = update(new, old)
    unbiased = torch.stack([new[0], new[1] * (100.0 / 99.0)])
    assert torch.equal(got, old * (1 - 0.1) + unbiased * 0.1)


def unpack(bits, dtype):
    """The spikes of packed bytes, and the report of what was done."""
    out = host.Guarded(len(bits), 8, dtype)
    report = host.module().unpack(bits.numpy(), host.as_array(out.tensor))
    out.check("out")
    return out.tensor, report


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", (1, 255, 256, 257))
def test_unpacked_spikes(count, dtype):
    """Unpacks all values of a byte: one read of each byte, and one write of its eight numbers, in instructions of at
    most 16 bytes (a GPU's; the host counts a pack once)."""
    bits = (torch.arange(count) * 37 % 256).to(torch.uint8)
    got, report = unpack(bits, dtype)
    assert torch.equal(got, (bits[:, None] >> torch.arange(8) & 1).to(dtype))
    stored, instructions = 8 * dtype.itemsize, dtype.itemsize // 2 * count
    assert report["loads"]["bits"] == {1: count} and report["stores"]["out"] in ({stored: count}, {16: instructions})


# ---- all of them


def test_any_order_of_threads_gives_the_same_bits():
    """Results must not depend on the order of threads and blocks; otherwise there is a race."""
    for i, (dtype, channels_last) in enumerate(itertools.product(DTYPES, (True, False))):
        results = []
        for schedule in (0, 1, 7, 8):
            block = Block(**NEURONS["plif"], connect=CONNECTIONS[i % 5], channels_last=channels_last)
            shape = (4 if i % 3 else 17, 2, 12, 8, 8)
            forward, got, _ = compare(block, dtype, shape, skip=True, schedule=schedule)
            results.append([forward.out, got.z, got.weight, got.bias, got.leak, got.sum])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_every_kernel_is_compared():
    """Compares every instance that the library can launch with the formulas."""
    launched = set()
    cases = itertools.product(DTYPES, (None, "and"), (4, 8, 9), (8, 6, 3), (True, False))
    for dtype, connect, T, C, detach in cases:
        block = Block(connect=connect, detach_reset=detach)
        *_, kernels = compare(block, dtype, (T, 2, C, 2, 2), bits=connect is None)
        launched |= {kernel for report in kernels.reports.values() for kernel, _, _ in report["launches"]}
    for dtype, case, T, C in itertools.product(DTYPES, kinds.CASES, (4, 5), (8, 3)):
        *_, kernels = compare(kinds.block(case, C), dtype, (T, 2, C, 2, 2))
        launched |= {kernel for report in kernels.reports.values() for kernel, _, _ in report["launches"]}
    for state in (torch.float32, torch.float64):
        test_running_statistics(9, state)
        name = "bn_update_kernelI" + ("f" if state == torch.float32 else "d")
        launched |= {kernel for kernel in host.kernels(host.library(), "bn") if name in kernel}
    for dtype in DTYPES:
        launched |= {kernel for kernel, *_ in unpack(torch.ones(3, dtype=torch.uint8), dtype)[1]["launches"]}
    every = host.kernels(host.library(), "bn")
    assert len(every) > 150
    assert launched == every
