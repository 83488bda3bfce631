"""The CUDA kernels compared with the reference: always on the host (host.py), and on a GPU if there is one."""

import itertools
import re

import host
import kinds
import pytest
import torch
from cases import EPS, by_reference, compare, current, pairwise, run
from devices import CUDA_PARAMS
from thorough import THOROUGH

from sewsnn import surrogate
from sewsnn.ops.neuron import checkpoint_count

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# (function, settings, w of PLIF): tau = 3 divides, tau = 2 multiplies
NEURONS = {
    "if": ("if", {}, None),
    "lif_tau2": ("lif", {"tau": 2.0}, None),
    "lif_tau3": ("lif", {"tau": 3.0}, None),
    "plif": ("plif", {}, 0.3),
}
STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 33, 500)
SURROGATES = [getattr(surrogate, name)() for name in surrogate.__all__ if name != "Surrogate"]


class OnHost:
    """The kernels as the C++ compiler compiles them."""

    device = "cpu"

    def compare(self, name, x, offset=0, gap=0, schedule=0, **settings):
        def backend(*args, **kwargs):
            return host.multistep(*args, layout=host.Layout(offset, gap), schedule=schedule, **kwargs)

        return compare(name, x, backend, **settings)


class OnGpu:
    """The kernels on a GPU."""

    device = "cuda"

    def compare(self, name, x, offset=0, gap=0, schedule=0, **settings):
        return compare(name, self.placed(x, offset, gap), "native", **settings)

    @staticmethod
    def placed(x, offset, gap):
        """x on the GPU, ``offset`` numbers off alignment, ``gap`` numbers between its rows."""
        if len(x) > 1 and x.stride(0) == 0:
            return OnGpu.placed(x[:1], offset, gap).expand(x.shape)
        row = x[0].numel()
        memory = torch.full((offset + len(x) * (row + gap),), torch.nan, dtype=x.dtype, device="cuda")
        strides = [row + gap, *(x.stride()[1:] if x.dim() > 1 else ())]
        return memory.as_strided(x.shape, strides, offset).copy_(x)


@pytest.fixture(params=["host", *CUDA_PARAMS])
def kernels(request):
    return OnHost() if request.param == "host" else OnGpu()


def arguments(neuron, dtype, device, shape, with_v=False, seed=0):
    """name, x, and the settings of a case."""
    name, settings, w = NEURONS[neuron]
    settings = dict(settings)
    if w is not None:
        settings["w"] = torch.tensor(w, device=device)
    if with_v:
        state = torch.float64 if dtype == torch.float64 else torch.float32
        settings["v"] = current(shape[1:], state, device=device, scale=0.5, mean=0.2, seed=seed + 1)
    return name, current(shape, dtype, seed=seed), settings


@pytest.mark.parametrize("T", STEPS)
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(kernels, dtype, neuron, T):
    """Sizes: less than a warp, odd, and a tail in the second block, for wide and for single accesses."""
    for i, M in enumerate((1, 264) if T == 500 else (1, 31, 257, 264, 8 * 256 + 8)):
        name, x, settings = arguments(neuron, dtype, kernels.device, (T, M), with_v=(T + i) % 2 == 0)
        if i % 2:
            settings["v_reset"] = None if i % 4 == 1 else -0.25
        kernels.compare(name, x, loss="sv", store_v_seq=i % 3 == 2, **settings)


@pytest.mark.parametrize("T", (4, 7, 17))
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options(kernels, dtype, neuron, T):
    """Every combination of options in float32 with T = 4 and 17; otherwise every pair, except in a thorough run."""
    resets, two = (0.0, None, -0.25), (False, True)
    combine = itertools.product if THOROUGH or (dtype == torch.float32 and T != 7) else pairwise
    combinations = combine(resets, two, two, two, two, ("s", "v", "sv"), (24, 21))
    for v_reset, detach_reset, decay_input, with_v, store_v_seq, loss, M in combinations:
        if neuron == "if" and decay_input:
            continue
        name, x, settings = arguments(neuron, dtype, kernels.device, (T, M), with_v)
        if neuron != "if":
            settings["decay_input"] = decay_input
        settings |= {"v_reset": v_reset, "detach_reset": detach_reset, "store_v_seq": store_v_seq, "loss": loss}
        kernels.compare(name, x, v_threshold=0.8, **settings)


@pytest.mark.parametrize("sigma", SURROGATES, ids=str)
def test_surrogates(kernels, sigma):
    for dtype, T, M in itertools.product(DTYPES, (4, 7, 17), (8, 5)):
        name, x, settings = arguments("lif_tau2", dtype, kernels.device, (T, M))
        kernels.compare(name, x, surrogate_function=sigma, **settings)


@pytest.mark.parametrize("offset, gap", [(1, 0), (0, 1), (3, 5), (0, 16), (8, 8), (4, 4), (2, 2)])
@pytest.mark.parametrize("neuron", NEURONS)
def test_misaligned_views(kernels, neuron, offset, gap):
    """Misaligned operands, and rows with gaps between them."""
    for dtype, T, M in itertools.product(DTYPES, (1, 4, 7, 17), (48, 45)):
        name, x, settings = arguments(neuron, dtype, kernels.device, (T, M), with_v=True)
        kernels.compare(name, x, offset=offset, gap=gap, **settings)


@pytest.mark.parametrize("neuron", NEURONS)
def test_channels_last(kernels, neuron):
    for dtype, T in itertools.product(DTYPES, (4, 17)):
        name, x, settings = arguments(neuron, dtype, kernels.device, (T, 2, 8, 3, 5))
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 2))
        s, v, (grad, *_) = kernels.compare(name, x, **settings)
        assert s.stride() == x.stride() == grad.stride() and v.stride() == x.stride()[1:]


@pytest.mark.parametrize("neuron", NEURONS)
def test_repeated_input(kernels, neuron):
    """A still image: stride 0 over T."""
    for dtype, T, M in itertools.product(DTYPES, (2, 4, 7, 17), (40, 37)):
        name, x, settings = arguments(neuron, dtype, kernels.device, (1, M))
        kernels.compare(name, x.expand(T, M), **settings)


@pytest.mark.parametrize("T", (1, 4, 7, 17))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_sums(dtype, T):
    """One number for all neurons (stride 0) is read without a copy."""
    for M in (40, 37):
        _, x, _ = arguments("lif_tau2", dtype, "cpu", (T, M))
        grads = []
        for multistep in (host.multistep, by_reference):
            leaf = x.detach().requires_grad_()
            s, v = multistep("lif", leaf)
            (s.sum() + v.sum().to(s.dtype)).backward()
            grads.append(leaf.grad)
        portion = x.element_size() * neurons_per_thread(host.reports[-1])
        # A row of it is as wide as an access, for any number of neurons.
        assert host.reports[-1]["loads"]["grad_s"] == {portion: T * M * x.element_size() // portion}
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-2 if x.element_size() == 2 else 1e-5, atol=1e-6)


def neurons_per_thread(report):
    """N, the last integer among the template arguments of the first kernel."""
    (kernel, _, _), *_ = report["launches"]
    return int(re.findall(r"Li(\d+)E", kernel)[-1])


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity(kernels, dtype, neuron):
    """NaN and infinity spread as in the CPU kernels, and to no other neurons."""
    for T, M in itertools.product((4, 7, 17), (24, 21)):
        name, x, settings = arguments(neuron, dtype, "cpu", (T, M))
        if "w" in settings:
            settings["w"].zero_()  # sigmoid(0) is 1/2 on every device
        clean = x.clone()
        x[1, 3], x[2, 5], x[0, 7], x[3, 11] = torch.nan, torch.inf, -torch.inf, torch.nan
        for v_reset in (0.0, None):
            settings["v_reset"] = v_reset
            on_device = {k: v.to(kernels.device) if torch.is_tensor(v) else v for k, v in settings.items()}
            backend = host.multistep if kernels.device == "cpu" else "native"
            s, v, (grad, *_) = run(name, x.to(kernels.device), backend, loss="sv", **on_device)
            s_cpu, v_cpu, (grad_cpu, *_) = run(name, x, "native", loss="sv", **settings)
            torch.testing.assert_close(s.cpu(), s_cpu, rtol=0, atol=0)
            torch.testing.assert_close(v.cpu(), v_cpu, rtol=0, atol=0, equal_nan=True)
            # On the GPU the surrogate's division rounds differently, which may also change the rounding to storage.
            rounding = 0 if kernels.device == "cpu" else 1e-5 + (EPS[dtype] if dtype.itemsize == 2 else 0)
            torch.testing.assert_close(grad.cpu(), grad_cpu, rtol=rounding, atol=rounding, equal_nan=True)
            # The other neurons are not affected.
            s_clean, _, (grad_clean, *_) = run(name, clean.to(kernels.device), backend, loss="sv", **on_device)
            others = [i for i in range(M) if i not in (3, 5, 7, 11)]
            assert torch.equal(s[:, others], s_clean[:, others])
            assert torch.equal(grad[:, others], grad_clean[:, others])


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_the_cpu_kernels(dtype, neuron):
    """Equal bit for bit, including gradients: the source is the same. The leak's gradient has another order of sums."""
    # The usual settings, and settings that differ from them in one point (the second surrogate is one, too).
    unusual = [{"detach_reset": False}, {"v_reset": None}, *([{"decay_input": False}] if neuron != "if" else [])]
    for T, M, some in itertools.product((1, 4, 5, 9, 16, 33), (64, 67), ({}, *unusual)):
        name, x, settings = arguments(neuron, dtype, "cpu", (T, M), with_v=True)
        settings |= {"detach_reset": True, "loss": "sv"} | some
        for sigma in (SURROGATES[0], SURROGATES[3]):
            s, v, grads = run(name, x, host.multistep, surrogate_function=sigma, **settings)
            s_cpu, v_cpu, grads_cpu = run(name, x, "native", surrogate_function=sigma, **settings)
            assert torch.equal(s, s_cpu) and torch.equal(v, v_cpu)
            assert torch.equal(grads[0], grads_cpu[0]) and torch.equal(grads[1], grads_cpu[1])


def test_any_order_of_threads_gives_the_same_bits():
    """Results must not depend on the order of threads and blocks; otherwise there is a race."""
    for dtype, T, M in itertools.product(DTYPES, (4, 8, 33), (3 * 2048, 777)):
        name, x, settings = arguments("plif", dtype, "cpu", (T, M), with_v=True)
        results = []
        for schedule in (0, 1, 7, 8):
            s, v, grads = run(name, x, host.multistep, loss="sv", schedule=schedule, **settings)
            results.append((s, v, *grads))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_more_partial_sums_than_threads_add_them(kernels):
    """PLIF over 1101 blocks: the leak's gradient is summed by 1024 threads."""
    name, x, settings = arguments("plif", torch.float32, kernels.device, (1, 140_801))
    kernels.compare(name, x, **settings)


def test_every_kernel_is_compared():
    """Compares every instance that the library can launch with the reference."""
    launched = set()
    for dtype, neuron, T, M, learn_leak in itertools.product(DTYPES, NEURONS, (4, 8, 17), (16, 15), (False, True)):
        name, x, settings = arguments(neuron, dtype, "cpu", (T, M))
        if learn_leak and neuron != "plif":
            continue
        if not learn_leak and "w" in settings:
            del settings["w"]
            settings["tau"], name = 2.0, "lif"
        host.reports.clear()
        OnHost().compare(name, x, **settings)
        launched |= {kernel for report in host.reports for kernel, _, _ in report["launches"]}
    host.reports.clear()
    for dtype, case, T, (C, size), learn in itertools.product(
        DTYPES, kinds.CASES, (4, 17), ((1, 16), (1, 15), (3, 1)), (False, True)
    ):
        x = current((T, 1, C, size), dtype)
        kinds.compare(kinds.spec(case), x, w=kinds.learnt(case, dtype, C), learn=learn)
    for state in (torch.float32, torch.float64):
        numbers, out = torch.ones(2, 5, dtype=state), torch.empty(2, dtype=state)
        host.reports.append(host.module().sum_rows(numbers.numpy(), out.numpy()))
        assert (out == 5).all()
    launched |= {kernel for report in host.reports for kernel, _, _ in report["launches"]}
    every = host.kernels(host.library())
    assert len(every) > 150
    assert launched == every


def test_checkpoints_are_the_potentials_of_their_time_step():
    _, x, _ = arguments("lif_tau2", torch.float32, "cpu", (500, 24))
    kept = []
    original = host.Layout.output

    class Watching(host.Layout):
        def output(self, rows, row, dtype):
            kept.append(original(self, rows, row, dtype))
            return kept[-1]

    _, v_seq = host.multistep("lif", x.requires_grad_(), layout=Watching(), store_v_seq=True)
    checkpoints = kept[2].tensor
    every = host.module().checkpoint_every
    assert len(checkpoints) == checkpoint_count(500) == 31
    assert torch.equal(checkpoints, v_seq.detach()[every - 1 :: every][:31])
