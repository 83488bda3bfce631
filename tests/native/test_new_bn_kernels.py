"""Batch norm + the neurons in kinds.py + connection on the host, compared with the formulas (bn_host.formula)."""

import itertools

import host
import pytest
import torch
from bn_host import CONNECT
from kinds import CASES, block, states
from test_bn_kernels import DTYPES, SHAPES, compare, instance

from sewsnn.ops.reference import NEURONS
from sewsnn.surrogate import Sigmoid

LEARNT = [case for case in CASES if CASES[case][0] == "LearntLIF"]
every_case = pytest.mark.parametrize("case", CASES)


def connections(case):
    """AND and IAND take binary spikes."""
    return [c for c in CONNECT if c not in ("and", "iand") or NEURONS[CASES[case][0]].binary]


PAIRS = [(case, connect) for case in CASES for connect in connections(case)]
STEPS = (1, 3, 4, 5, 16, 17, 33)


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("case, connect", PAIRS)
def test_forward_and_backward(case, connect, channels_last):
    """Every neuron and connection with every T; dtypes, shapes and options alternate."""
    first = PAIRS.index((case, connect)) + channels_last
    for i, T in enumerate(STEPS):
        turn = first + i
        shape = SHAPES[turn % len(SHAPES)] if T <= 5 else SHAPES[turn % 2 * 3]
        chosen = block(
            case,
            shape[1] if turn % 3 else 1,
            connect=connect,
            channels_last=channels_last,
            v_reset=(0.0, None, -0.25)[turn % 3],
            detach_reset=turn % 2 == 0,
            decay_input=turn % 4 < 2,
        )
        compare(chosen, DTYPES[turn % 4], (T, *shape), skip=turn % 3 == 1, seed=turn)


@pytest.mark.parametrize("channels_last", (True, False))
@pytest.mark.parametrize("case, connect", PAIRS)
def test_instances(case, connect, channels_last):
    """One instance for up to four time-steps, if packs fit, and one for everything else."""
    for i, (dtype, T, C) in enumerate(itertools.product(DTYPES, (2, 4, 5, 16), (8, 3))):
        chosen = block(case, C, connect=connect, channels_last=channels_last)
        *_, kernels = compare(chosen, dtype, (T, 1, C, 4 if C == 8 else 3, 5), skip=i % 2 == 0, seed=i + T)
        packs = 4 // states(case)
        fits = dtype.itemsize < 8 and (C if channels_last else 5 * (4 if C == 8 else 3)) % packs == 0
        for name in ("reduce", "apply"):
            expected = (4, packs) if fits and T <= 4 else (16, 1)
            assert instance(kernels.reports[name])[1:3] == expected, (dtype, T, C, name)
        assert instance(kernels.reports["forward"])[1] == (packs if fits else 1)


@pytest.mark.parametrize("own", (False, True))
@pytest.mark.parametrize("case", LEARNT)
def test_learnt_parameters(case, own):
    """Several lines of channels, and more slabs than one chunk of the second stage holds."""
    shapes = ((4, 2, 72, 7, 7), (2, 3, 2, 90, 90), (17, 1, 160, 2, 2), (1, 2, 5, 31, 33))
    for shape, channels_last in itertools.product(shapes, (True, False)):
        compare(block(case, shape[2] if own else 1, channels_last=channels_last), torch.float32, shape, skip=own)


@every_case
def test_surrogates_and_other_norms(case):
    """Cases: another surrogate, no weight and bias, constant statistics, no batch norm."""
    for i, T in enumerate((4, 17)):
        for dtype in DTYPES[i::2]:
            shape = (T, 1, 12, 3, 3)
            compare(block(case, 12, surrogate=Sigmoid(4.0)), dtype, shape)
            compare(block(case, 12, affine=False), dtype, shape)
            compare(block(case, 12, connect="add"), dtype, shape, frozen=True)
            compare(block(case, 12, connect="add_before", normalised=False), dtype, shape, skip=True)


@pytest.mark.parametrize("channels_last", (True, False))
@every_case
def test_still_image(case, channels_last):
    """One z for all time-steps: its gradient is one row, the sum over T."""
    for i, (T, C, connect) in enumerate(((4, 8, None), (5, 3, "add"), (17, 8, "add_before"))):
        chosen = block(case, C, still=True, connect=connect, channels_last=channels_last)
        _, got, kernels = compare(chosen, DTYPES[(i + channels_last) % 4], (T, 2, C, 4, 4), seed=T)
        assert got.z.shape == (1, 2, C, 4, 4)
        assert sum(size * n for size, n in kernels.reports["apply"]["stores"]["grad_z"].items()) == got.z.nbytes


@pytest.mark.parametrize("offset, gap", [(1, 0), (0, 1), (3, 5), (8, 8), (4, 4), (2, 2)])
@every_case
def test_misaligned_views(case, offset, gap):
    for i, (dtype, T) in enumerate(itertools.product(DTYPES, (4, 17))):
        chosen = block(case, 16, connect=connections(case)[i % 3], channels_last=i % 3 != 0)
        compare(chosen, dtype, (T, 1, 16, 4, 2), host.Layout(offset, gap), skip=i % 2 == 0, seed=i)


@pytest.mark.parametrize("case", [case for case in CASES if NEURONS[CASES[case][0]].binary])
def test_packed_spikes(case):
    """A byte comes from two neighbouring threads, or from a second kernel."""
    shapes = (8, 3, 3, True), (8, 4, 4, False), (12, 2, 2, True), (16, 7, 7, False), (72, 2, 1, True)
    for dtype, (C, height, width, channels_last), T in itertools.product(DTYPES, shapes, (3, 17)):
        compare(block(case, C, channels_last=channels_last), dtype, (T, 2, C, height, width), bits=True)


@every_case
def test_gradients_of_sums(case):
    """One number for all neurons, the same for all time-steps or not."""
    for dtype, T, C in itertools.product(DTYPES, (1, 4, 17), (16, 5)):
        shape, steps = (T, 1, C, 2, 2), 1 if C == 16 else T
        grad = (torch.arange(1, steps + 1) / 4).to(dtype).view(-1, 1, 1, 1, 1).expand(shape)
        compare(block(case, C, connect="add"), dtype, shape, grad=grad, skip=C == 5)


@every_case
def test_any_order_of_threads_gives_the_same_bits(case):
    """Results must not depend on the order of threads and blocks; otherwise there is a race."""
    for i, (dtype, channels_last) in enumerate(itertools.product(DTYPES, (True, False))):
        results = []
        for schedule in (0, 1, 7, 8):
            chosen = block(case, 12, connect=connections(case)[i % 3], channels_last=channels_last)
            shape = (4 if i % 3 else 17, 2, 12, 8, 8)
            forward, got, _ = compare(chosen, dtype, shape, skip=True, schedule=schedule)
            results.append([forward.out, forward.v, got.z, got.weight, got.bias, got.leak, got.sum])
        for other in results[1:]:
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_case
def test_all_states_are_kept(case):
    """v has all final states; checkpoints have the states before each chunk, a row for each state and chunk."""
    chosen = block(case, 8)
    shape = (33, 1, 8, 2, 2)
    forward, _, kernels = compare(chosen, torch.float32, shape)
    k = states(case)
    assert forward.checkpoints.shape == (2 * k, 32)
    assert forward.v.shape == ((k,) if k > 1 else ()) + shape[1:]
    for name in ("reduce", "apply"):
        assert kernels.reports[name]["loads"]["checkpoints"] == {4: 2 * k * 32}
