"""The CUDA kernels of the neurons in kinds.py, executed on the host and compared with the reference."""

import itertools

import host
import kinds
import pytest
import torch
from cases import current, pairwise
from kinds import CASES, compare, initial, learnt, run, spec, states
from thorough import THOROUGH

from sewsnn.surrogate import Rectangular, Sigmoid

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STEPS = (1, 3, 4, 5, 8, 16, 17, 33)
LEARNT = [case for case in CASES if CASES[case][0] == "LearntLIF"]
SOFT = [case for case in CASES if CASES[case][0] == "ILIF"]  # these have no v_reset

every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("T", STEPS)
@every_case
@every_dtype
def test_sizes(dtype, case, T):
    """Sizes: less than a warp, odd, and a tail in the second block, for wide and for single accesses."""
    for i, M in enumerate((1, 31, 257, 264, 8 * 256 + 8)):
        x = current((T, M), dtype, seed=i)
        v = initial(case, x) if (T + i) % 2 == 0 else None
        neuron = spec(case, v_reset=(0.0, None, -0.25)[i % 3])
        compare(neuron, x, v, learnt(case, dtype), v_mode=1 + i % 2)


@pytest.mark.parametrize("T", (4, 7, 17))
@every_case
@every_dtype
def test_options(dtype, case, T):
    """Every pair of options; every combination in a thorough run."""
    resets = (None,) if case in SOFT else (0.0, None, -0.25)
    two = (False, True)
    combine = itertools.product if THOROUGH else pairwise
    for v_reset, detach, decay_input, with_v, loss, v_mode, M in combine(
        resets, two, two, two, ("s", "v", "sv"), (0, 1, 2), (24, 21)
    ):
        if v_mode == 0 and loss == "v":
            continue
        x = current((T, M), dtype, seed=M)
        neuron = spec(case, v_reset=v_reset, detach_reset=detach, decay_input=decay_input)
        compare(neuron, x, initial(case, x) if with_v else None, learnt(case, dtype), loss, v_mode)


@pytest.mark.parametrize("sigma", (Sigmoid(4.0), Rectangular(1.5)), ids=str)
@every_case
def test_surrogates(case, sigma):
    for dtype, T, M in itertools.product(DTYPES, (4, 7, 17), (8, 5)):
        compare(spec(case, surrogate=sigma), current((T, M), dtype), w=learnt(case, dtype))


@pytest.mark.parametrize("offset, gap", [(1, 0), (0, 1), (3, 5), (0, 16), (8, 8), (4, 4), (2, 2)])
@every_case
def test_misaligned_views(case, offset, gap):
    """Misaligned operands, and rows with gaps between them."""
    for dtype, T, M in itertools.product(DTYPES, (1, 4, 17), (48, 45)):
        x = current((T, M), dtype)
        compare(spec(case), x, initial(case, x), learnt(case, dtype), layout=host.Layout(offset, gap))


@pytest.mark.parametrize("channels_last", (False, True))
@every_case
@every_dtype
def test_channels(dtype, case, channels_last):
    """Images in both memory orders; LearntLIF has one number for all channels, or one for each."""
    for T, (C, H, W), own in itertools.product((1, 4, 5, 17), ((8, 3, 4), (3, 5, 3), (40, 2, 2)), (False, True)):
        if own and case not in LEARNT:
            continue
        x = current((T, 2, C, H, W), dtype, seed=C)
        if channels_last:
            x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 2))
        v = initial(case, x)
        w = learnt(case, dtype, C if own else 1)
        s, v_seq, (grad, *_) = compare(spec(case), x, v, w)
        assert s.stride() == x.stride() == grad.stride() and v_seq.stride()[-4:] == x.stride()[1:]


@pytest.mark.parametrize("case", LEARNT)
def test_channels_without_images(case):
    """A linear layer: the channels are the last axis."""
    for dtype, T, C in itertools.product(DTYPES, (4, 17), (24, 7)):
        x = current((T, 5, C), dtype)
        compare(spec(case), x, None, learnt(case, dtype, C))


@pytest.mark.parametrize("case", LEARNT)
def test_many_terms(case):
    """The gradients are sums of more blocks than one chunk of the second stage holds."""
    for shape in ((1, 2, 3, 150, 151), (2, 300, 130)):
        for own in (False, True):
            x = current(shape)
            compare(spec(case), x, None, learnt(case, x.dtype, shape[2] if own else 1))


@every_case
def test_repeated_input(case):
    """A still image: stride 0 over T."""
    for dtype, T, M in itertools.product(DTYPES, (4, 7, 17), (40, 37)):
        compare(spec(case), current((1, M), dtype).expand(T, M), w=learnt(case, dtype))


@pytest.mark.parametrize("T", (1, 4, 17))
@every_case
def test_gradients_of_sums(case, T):
    """One number for all neurons (stride 0) is read without a copy."""
    for dtype, M in itertools.product(DTYPES, (40, 37)):
        x, w = current((T, M), dtype), learnt(case, dtype)
        grads = []
        for backend in (kinds.on_host, kinds.by_reference):
            leaf = x.detach().requires_grad_()
            s, v = backend(leaf, spec(case), None, w, 1)
            (s.sum() + v.sum().to(s.dtype)).backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-2 if x.element_size() == 2 else 1e-5, atol=1e-6)
        loads = host.reports[-1]["loads"]
        for name in ("grad_v", "grad_v of the second state")[: states(case)]:
            assert sum(size * n for size, n in loads[name].items()) == M * v.element_size()


@every_case
@every_dtype
def test_nan_and_infinity(dtype, case):
    """NaN and infinity spread as in the CPU kernels, and to no other neurons."""
    for T, M in itertools.product((4, 17), (24, 21)):
        x = current((T, M), dtype)
        clean = x.clone()
        x[1, 3], x[2, 5], x[0, 7], x[3, 11] = torch.nan, torch.inf, -torch.inf, torch.nan
        others = [i for i in range(M) if i not in (3, 5, 7, 11)]
        for v_reset in (0.0, None):
            neuron, w = spec(case, v_reset=v_reset), learnt(case, dtype)
            results = [
                run(backend, neuron, some, None, w)
                for backend, some in ((kinds.on_host, x), (kinds.on_cpu, x), (kinds.on_host, clean))
            ]
            for got, expected in zip(flat(results[0]), flat(results[1]), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
            for got, expected in zip(flat(results[0]), flat(results[2]), strict=True):
                assert torch.equal(got[..., others], expected[..., others])


def flat(result):
    """s, v and the gradient of x."""
    s, v, (grad, *_) = result
    return s, v, grad


@every_case
@every_dtype
def test_equal_to_the_cpu_kernels(dtype, case):
    """Equal bit for bit, including gradients, because the source is the same. The gradients of learnt parameters are
    sums in another order."""
    settings = ({}, {"detach_reset": False}, {"v_reset": None}, {"decay_input": False}, {"surrogate": Sigmoid(4.0)})
    for T, M, some in itertools.product((1, 4, 5, 9, 16, 33), (64, 67), settings):
        x = current((T, M), dtype)
        v, w = initial(case, x), learnt(case, dtype)
        on_host, on_cpu = (run(backend, spec(case, **some), x, v, w) for backend in (kinds.on_host, kinds.on_cpu))
        for got, expected in zip((*on_host[:2], *on_host[2][:2]), (*on_cpu[:2], *on_cpu[2][:2]), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
        if w is not None:
            size = kinds.of_each_neuron(spec(case, **some), x, v, w)[0].double().abs().sum(1, keepdim=True) + M
            bound = 4 * (T + 4) * kinds.EPS[w.dtype] * size
            assert ((on_host[2][2].double() - on_cpu[2][2]).abs() <= bound).all()


@every_case
def test_any_order_of_threads_gives_the_same_bits(case):
    """Results must not depend on the order of threads and blocks; otherwise there is a race."""
    for dtype, (T, shape), own in itertools.product(DTYPES, ((4, (2, 12, 16, 8)), (33, (1, 7, 9, 11))), (False, True)):
        if own and case not in LEARNT:
            continue
        x = current((T, *shape), dtype)
        v, w = initial(case, x), learnt(case, dtype, shape[1] if own else 1)
        results = []
        for schedule in (0, 1, 7, 8):
            s, v_out, grads = run(kinds.on_host, spec(case), x, v, w, schedule=schedule)
            results.append((s, v_out, *grads))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_sum_of_rows(dtype):
    """Each row is summed in double and rounded once."""
    for rows, n in itertools.product((1, 2), (1, 31, 1024, 5000)):
        numbers = host.Guarded(rows, n, dtype)
        numbers.tensor.copy_(current((rows, n), dtype))
        out = host.Guarded(1, rows, dtype)
        host.module().sum_rows(numbers.tensor.numpy(), out.tensor.numpy(), schedule=rows)
        out.check("out")
        expected = numbers.tensor.double().sum(1)
        torch.testing.assert_close(out.tensor[0].double(), expected, rtol=kinds.EPS[dtype] * 32, atol=0)


def test_checkpoints_are_the_states_of_their_time_step():
    """Each state has its own rows."""
    x = current((50, 24))
    for case in ("cuba", "adaptive"):
        kept = []

        class Watching(host.Layout):
            def output(self, rows, row, dtype, kept=kept):
                kept.append(super().output(rows, row, dtype))
                return kept[-1]

        _, v_seq = host.by_spec(spec(case), x.clone().requires_grad_(), layout=Watching(), v_mode=2)
        checkpoints, every = kept[2].tensor.view(2, 3, 24), host.module().checkpoint_every
        assert torch.equal(checkpoints, v_seq.detach()[:, every - 1 :: every])
