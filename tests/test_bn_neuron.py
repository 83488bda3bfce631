"""Batch norm + neuron + connection in one op: its values against the reference and against the modules."""

import pytest
import torch
from bn_cases import CONNECTIONS, NODES, Case, by_op, compare, norm
from cases import EPS, current
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import examples

from sewsnn import surrogate
from sewsnn.layers import bn_neuron

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SURROGATES = [getattr(surrogate, name) for name in surrogate.__all__ if name != "Surrogate"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_equals_the_reference(connection, node, dtype, device):
    """Outputs bit for bit and all gradients: T within a chunk and beyond it, still images, training and frozen."""
    for training in (True, False):
        compare(Case(current((3, 2, 8, 3, 5), dtype, device), connection, node, training=training, return_skip=True))
        compare(Case(current((2, 3, 5, 4), dtype, device), connection, node, T=17, training=training))
    compare(Case(current((33, 2, 3, 5, 3), dtype, device), connection, node, return_skip=True))


@pytest.mark.parametrize("channels", [1, 3, 8, 64, 72])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_channels(order, channels, device):
    """Numbers of channels below, equal to and above that of a vector; planes of 1, 15 and 35 numbers."""
    for plane in ((1, 1), (3, 5), (5, 7)):
        z = current((3 * 2, channels, *plane), device=device).contiguous(memory_format=order).unflatten(0, (3, 2))
        result = compare(Case(z, "ADD", return_skip=True))
        assert result.out.stride()[1:] == z.stride()[1:]


@pytest.mark.parametrize("T", [1, 3, 4, 16, 17, 33])
def test_time_steps(T, device):
    for dtype in (torch.float32, torch.float64):
        compare(Case(current((T, 2, 3, 4, 5), dtype, device), "IAND", "PLIF"))
        compare(Case(current((3, 3, 4, 5), dtype, device), "IAND", "PLIF", T=T))


@pytest.mark.parametrize("make", SURROGATES, ids=[s.__name__ for s in SURROGATES])
def test_surrogates(make, device):
    for dtype in (torch.float32, torch.float64):
        z = current((20, 2, 3, 4, 5), dtype, device)
        compare(Case(z, "AND", "LIF3", neuron={"surrogate_function": make(1.5)}))


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, 0.25, None])
def test_resets(v_reset, detach_reset, decay_input, device):
    z = current((20, 2, 3, 4, 5), torch.float64, device)
    options = {"v_reset": v_reset, "detach_reset": detach_reset, "v_threshold": 0.7}
    compare(Case(z, node="IF", neuron=options))
    compare(Case(z, node="LIF3", neuron={**options, "decay_input": decay_input}))
    compare(Case(z, node="PLIF", neuron={**options, "decay_input": decay_input}))


NORMS = {
    "no weight, no bias": {"affine": False},
    "no bias": {"without": ["bias"]},
    "no weight": {"without": ["weight"]},
    "untracked": {"track_running_stats": False},
    "eps": {"eps": 0.5},
    "none": None,
}


@pytest.mark.parametrize("how", NORMS.values(), ids=NORMS.keys())
def test_norms(how, device):
    """Without tracking, evaluation also uses the statistics of the batch."""
    for training in (True, False):
        for T in (None, 5):
            z = current((2, 3, 4, 5) if T else (6, 2, 3, 4, 5), device=device)
            compare(Case(z, "AND", "PLIF", T=T, training=training, norm=how))


def test_no_space_at_all(device):
    """[T, N, C], the output of a linear layer."""
    z = current((6, 40, 7), device=device)
    bn = torch.nn.BatchNorm1d(7).to(device)
    fused = bn_neuron(z, bn, None).out
    torch.testing.assert_close(fused, bn_neuron(z, torch.nn.BatchNorm1d(7).to(device), None, fused=False).out)


@st.composite
def cases(draw):
    T, still = draw(st.integers(1, 36)), draw(st.booleans())
    N, C, inner = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.lists(st.integers(1, 7), max_size=3))
    shape = [N, C, *inner] if still else [T, N, C, *inner]
    order = draw(st.permutations(range(len(shape))))
    form = draw(st.sampled_from(["plain", "sliced", "unaligned", "strided"]))
    seed, dtype = draw(st.integers(0, 1000)), draw(st.sampled_from(DTYPES))

    def tensor(shape, seed):
        order_ = order if len(shape) == len(order) else [0, *(d + 1 for d in order)]
        z = current([shape[d] for d in order_], dtype, seed=seed)
        if form == "unaligned":
            z = torch.cat([z.flatten()[:1], z.flatten()])[1:].view(z.shape)
        z = z.permute([order_.index(d) for d in range(len(order_))])
        if form == "sliced":
            z = torch.cat([z, z], dim=-1)[..., : shape[-1]]
        return z.repeat_interleave(2, dim=0)[::2] if form == "strided" else z

    z = tensor(shape, seed)
    connection, node = draw(st.sampled_from(list(CONNECTIONS))), draw(st.sampled_from(list(NODES)))
    neuron = {
        "v_threshold": draw(st.sampled_from([1.0, 0.5, -0.2])),
        "v_reset": draw(st.sampled_from([None, 0.0, -0.3])),
        "surrogate_function": draw(st.sampled_from(SURROGATES))(draw(st.sampled_from([0.4, 2.0]))),
        "detach_reset": draw(st.booleans()),
    }
    shortcut = None if connection == "none" else tensor([T, *shape] if still else shape, seed + 1)
    if shortcut is not None and draw(st.booleans()):
        shortcut = shortcut[:1].expand(T, *shortcut.shape[1:])
    enough = z.numel() > C
    norm = draw(st.sampled_from([None, {}, {"affine": False}]))
    return Case(
        z,
        connection,
        node,
        T if still else None,
        enough and draw(st.booleans()),
        draw(st.booleans()),
        norm,
        neuron,
        shortcut,
    )


@settings(max_examples=examples(60))
@given(cases())
def test_everything_at_once(case):
    """Compares any shape, memory order, dtype, norm, neuron and connection."""
    compare(case)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_equals_the_modules(connection, node, device):
    """nn.BatchNorm2d, the node and g in turn, in float64: outputs, gradients, running statistics.

    Both are off by rounding alone, which no T, sum or weight here amplifies by more than 1e4; no spike flips at random.
    """
    for training, T in ((True, None), (False, None), (True, 5), (False, 5)):
        z = current((2, 3, 4, 5) if T else (6, 2, 3, 4, 5), torch.float64, device)
        case = Case(z, connection, node, T, training, return_skip=True)
        fused, modules = by_op(case), by_op(case, fused=False)
        tolerance = {"rtol": 1e4 * EPS[z.dtype], "atol": 1e4 * EPS[z.dtype]}
        torch.testing.assert_close(fused.out, modules.out, **tolerance)
        torch.testing.assert_close(fused.v, modules.v, **tolerance)
        torch.testing.assert_close(fused.grads, modules.grads, **tolerance)
        torch.testing.assert_close(dict(fused.bn.named_buffers()), dict(modules.bn.named_buffers()), **tolerance)


def test_float32_spikes_differ_from_the_modules_only_at_the_threshold(device):
    """Their statistics are rounded otherwise, so y differs by some 2^-24, and h too: a spike may flip where the float64
    h is within a band of the threshold, and a neuron that flipped once goes its own way from then on."""
    z = current((8, 4, 16, 12, 12), device=device)
    fused, modules = (by_op(Case(z, node="IF"), fused=f) for f in (True, False))
    # y = (z - mean) scale + bias: 3 roundings of at most max|y|, and mean and var of n terms; then T sums for h.
    band = (8 + 2) * 8 * EPS[torch.float32] * float(z.abs().max())
    exact = norm(16, torch.float64, device)  # the same weights
    y = exact(z.double().flatten(0, 1)).unflatten(0, z.shape[:2])
    v, clear = torch.zeros_like(y[0]), torch.ones_like(y[0], dtype=torch.bool)
    doubtful = 0
    for t, x in enumerate(y):
        h = v + x
        clear &= (h - 1).abs() > band
        doubtful += int((~clear).sum())
        s = (h >= 1).double()
        for spikes in (fused.out[t], modules.out[t]):
            assert torch.equal(spikes[clear], s.float()[clear])
        v = (1 - s) * h
    assert doubtful < 1e-3 * y.numel()  # the band is so narrow that the comparison says something


def test_empty_batch(device):
    """Empty input with frozen statistics gives empty results and zero gradients; in training it is an error."""
    z = torch.zeros(3, 0, 4, 5, 5, device=device)
    for connection in CONNECTIONS:
        result = by_op(Case(z, connection, "PLIF", training=False, return_skip=True))
        assert result.out.shape == result.grads["z"].shape == z.shape
        assert not any(result.grads[name].any() for name in ("weight", "bias", "w"))
    with pytest.raises(ValueError, match="more than one value per channel"):
        by_op(Case(z))


def test_packed_spikes(device):
    """Spike i, in the order of out's memory, is bit i % 8 of byte i / 8 of its time-step."""
    for T, z in ((None, current((20, 2, 4, 3, 5), device=device)), (3, current((1, 40, 3, 3), device=device))):
        for flip in (False, True):
            y = z.transpose(-1, -3) if flip and T is None else z
            output = bn_neuron(y, None, NODES["IF"](), T=T, pack_spikes=True)
            rows = output.out.permute(0, *sorted(range(1, output.out.dim()), key=lambda d: -output.out.stride(d)))
            bits = (output.bits.view(len(rows), -1, 1).int() >> torch.arange(8, device=device)) & 1
            assert torch.equal(bits.flatten(1), rows.flatten(1).int()) and bits.any()
    assert bn_neuron(current((2, 1, 3, 3), device=device), None, NODES["IF"](), pack_spikes=True).bits is None  # 9
