"""The values of the compiled neurons, compared with the readable reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import compare, current, run

from sewsnn import functional, surrogate
from sewsnn.ops import reference
from sewsnn.ops.load import INSTRUCTION_SET

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NEURONS = {
    "if": ("if", {}),
    "lif2": ("lif", {"tau": 2.0}),
    "lif3": ("lif", {"tau": 3.0}),
    "lif1.7": ("lif", {"tau": 1.7, "decay_input": False}),
    "lif1": ("lif", {"tau": 1.0}),
    "lif4": ("lif", {"tau": 4.0, "decay_input": False}),
    "plif": ("plif", {}),
}


def with_w(name, settings, device="cpu"):
    return {**settings, "w": torch.tensor(0.3, device=device)} if name == "plif" else settings


@pytest.mark.parametrize("v_reset", [0.0, -0.25, None], ids=["hard", "hard-.25", "soft"])
@pytest.mark.parametrize("neuron", NEURONS)
def test_equals_reference(neuron, v_reset, device):
    name, settings = NEURONS[neuron]
    x = current((6, 3, 341), device=device)
    s, _, _ = compare(name, x, v_reset=v_reset, store_v_seq=True, loss="sv", **with_w(name, settings, device))
    assert 0.02 < s.mean() < 0.98  # the case means something


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [1, 2, 4, 5, 15, 16, 17, 32, 33, 100])
def test_time_steps(T, dtype, device):
    compare("lif", current((T, 2, 130), dtype, device), tau=2.0, store_v_seq=True, loss="sv")
    compare("if", current((T, 2, 130), dtype, device), loss="s")


@pytest.mark.parametrize("M", [1, 7, 8, 1023, 1024, 1025, 5000])
def test_sizes(M, device):
    """Results do not depend on the width of vectors or the size of blocks."""
    compare("lif", current((5, M), device=device), tau=2.0, v=current((M,), device=device, seed=3), loss="sv")
    compare("plif", current((20, M), device=device), w=torch.tensor([0.1], device=device), loss="sv")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", [1_100_000, 1_100_007], ids=["aligned", "unaligned"])
def test_results_larger_than_the_cache(M, dtype, device):
    """CPU results of 8 MiB and more are written past the cache if every row is aligned."""
    x = current((4, M), dtype, device)
    compare("lif", x, tau=2.0, store_v_seq=True, loss="sv")
    compare("plif", x, w=torch.tensor(0.2, device=device), v=current((M,), reference.state_dtype(dtype), device))


def test_thousands_of_time_steps(device):
    compare("lif", current((3000, 9), device=device), tau=2.0, v_reset=None, loss="sv")
    compare("plif", current((2100, 9), torch.float64, device), w=torch.tensor(0.5, device=device), loss="s")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_initial_v_in_either_dtype(dtype, device):
    x = current((4, 50), dtype, device)
    for v_dtype in {dtype, reference.state_dtype(dtype)}:
        v = current((50,), v_dtype, device, seed=5)
        _, _, grads = compare("lif", x, tau=2.0, v=v, loss="sv")
        assert grads[1].dtype == v_dtype


def test_returns_final_v_or_every_v(device):
    x = current((7, 33), torch.float16, device)
    s, v = functional.lif_multistep(x)
    s_again, v_seq = functional.lif_multistep(x, store_v_seq=True)
    assert torch.equal(s, s_again) and torch.equal(v, v_seq[-1])
    assert s.dtype == torch.float16 and v.dtype == torch.float32 and v_seq.shape == x.shape


def test_equality_fires(device):
    x = torch.tensor([[1.0, 0.999999]], device=device)
    assert functional.if_multistep(x, backend="native")[0].tolist() == [[1.0, 0.0]]


def test_empty_batch(device):
    for name, settings in NEURONS.values():
        x = torch.empty(4, 0, 3, device=device)
        w = {"w": torch.tensor(0.2, device=device)} if name == "plif" else {}
        s, v, grads = run(name, x, "native", loss="sv", **{**settings, **w})
        assert s.shape == x.shape and v.shape == (0, 3) and grads[0].shape == x.shape
        if w:
            assert grads[1] == 0


def test_nan_stays_where_it_is(device):
    """A NaN in x makes v NaN from then on and never fires; no other element changes."""
    x = current((40, 300), device=device)
    clean = run("lif", x, "native", store_v_seq=True, loss="s")
    dirty_x = x.clone()
    dirty_x[2, 100] = float("nan")
    s, v, (grad,) = run("lif", dirty_x, "native", store_v_seq=True, loss="s")
    others = torch.arange(300, device=device) != 100
    assert v[2:, 100].isnan().all() and (s[2:, 100] == 0).all()
    assert torch.equal(s[:, others], clean[0][:, others])
    assert torch.equal(v[:, others], clean[1][:, others])
    assert torch.equal(grad[:, others], clean[2][0][:, others])


def test_infinite_input(device):
    x = torch.zeros(3, 2, device=device)
    x[0, 0], x[0, 1] = float("inf"), float("-inf")
    for backend in ("native", "torch"):
        s, v = functional.if_multistep(x, v_reset=-0.5, store_v_seq=True, backend=backend)
        assert s[0].tolist() == [1.0, 0.0]
        assert v[:, 0].tolist() == [-0.5, -0.5, -0.5] and (v[:, 1] == float("-inf")).all()


@pytest.mark.parametrize("T", [4, 40])
def test_same_result_every_time_and_for_any_number_of_threads(T, device):
    x = current((T, 20_000), device=device)
    w = torch.tensor(0.3, device=device)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 1):
            torch.set_num_threads(n)
            s, v, grads = run("plif", x, "native", w=w, loss="sv")
            results.append((s, v, *grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


_DIGEST = """
import hashlib, torch
from cases import current, run
from sewsnn import surrogate
h = hashlib.sha256()
def digest(*arguments, **settings):
    s, v, grads = run(*arguments, **settings)
    for t in (s, v, *grads):
        h.update(t.contiguous().view(torch.uint8).numpy().tobytes() if t.dim() else repr(t.item()).encode())
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    x = current((18, 1500), dtype)
    for kind in surrogate.__all__:
        if kind != "Surrogate":
            settings = {"w": torch.tensor(0.3), "surrogate_function": getattr(surrogate, kind)()}
            digest("plif", x, "native", loss="sv", store_v_seq=True, **settings)
    for v_reset in (0.0, -0.3, None):
        for detach_reset in (True, False):
            settings = {"v_reset": v_reset, "detach_reset": detach_reset, "loss": "sv"}
            digest("if", x, "native", **settings)
            digest("lif", x, "native", tau=3.0, decay_input=False, **settings)
    digest("lif", current((4, 1_100_000), dtype), "native")  # results larger than the cache
print(h.hexdigest())
"""


def test_instruction_sets_agree_bit_for_bit():
    """Those that this processor has."""
    digests, sets = {}, ("avx512", "avx2", "generic")
    for isa in sets[sets.index(INSTRUCTION_SET or "generic") :]:
        environment = {**os.environ, "SEWSNN_CPU": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, cwd=Path(__file__).parent, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        digests[isa] = done.stdout.strip()
    assert len(set(digests.values())) == 1, digests


def test_autocast_and_deterministic_algorithms(device):
    linear = torch.nn.Linear(32, 32, device=device)
    x = current((4, 8, 32), device=device)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            z = linear(x)
            s, v = functional.lif_multistep(z, backend="native")
        s.float().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert z.dtype == s.dtype == torch.bfloat16 and v.dtype == torch.float32
    assert linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("T", [4, 64])
def test_backward_keeps_x_and_checkpoints_only(T, device):
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    x = current((T, 100), device=device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        functional.lif_multistep(x, backend="native")[0].sum()
    checkpoints = (T - 1) // 16 * 100 * 4 if T > 16 else 0
    assert sum(kept.values()) == x.numel() * 4 + checkpoints


def test_no_checkpoints_without_gradient(device):
    arguments = (None, None, 1, 2.0, True, 1.0, 0.0, 0, 2.0, True, 1)
    for needs_grad, count in ((False, 0), (True, 3)):
        *_, checkpoints = torch.ops.sewsnn.neuron_forward(current((64, 10), device=device), *arguments, needs_grad)
        assert checkpoints.numel() == count * 10


def test_plif_gradient_sums_all_elements(device):
    x = current((4, 300_000), device=device)
    w = torch.tensor(0.2, device=device)
    _, _, (_, grad) = run("plif", x, "native", w=w)
    _, _, (_, exact) = run("plif", x.double(), "torch", w=w.double())
    # h may round across the threshold in fp32 but not in fp64: one flip in 1e6 changes the sum by about 1e-6.
    assert abs(grad.item() - exact.item()) < 1e-5 * x.numel() ** 0.5 + 1e-4 * abs(exact.item())


def test_surrogate_default_is_the_papers():
    assert functional.lif_multistep.__kwdefaults__["surrogate_function"] == surrogate.ATan(2.0)
