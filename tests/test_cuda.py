"""Tests that need a GPU: CUDA graphs, streams, no synchronisation, reproducible bits, memory, 64-bit indices."""

import pytest
import torch
from cases import current, run

from sewsnn import functional

pytestmark = pytest.mark.cuda  # conftest.py leaves the file out without a CUDA device
NEURONS = {"if": {}, "lif": {"tau": 3.0}, "plif": {}}
every_neuron = pytest.mark.parametrize("name", NEURONS)


@pytest.fixture(autouse=True)
def _on_cuda():
    yield
    torch.cuda.set_sync_debug_mode("default")


def arguments(name, T=4, dtype=torch.float32, M=4096):
    x = current((T, M), dtype, "cuda")
    settings = dict(NEURONS[name])
    if name == "plif":
        settings["w"] = torch.tensor(0.3, device="cuda")
    return x, settings


@every_neuron
@pytest.mark.parametrize("T", (4, 40))
def test_graph_capture_and_replay(name, T):
    """A captured forward + backward, replayed on other data, gives the results of direct calls."""
    x, settings = arguments(name, T)
    static = x.clone().requires_grad_()
    w = settings.pop("w", None)
    w = [] if w is None else [w.requires_grad_()]
    multistep = getattr(functional, f"{name}_multistep")
    grad = torch.randn_like(x)

    def step():
        s, v = multistep(static, *w, **settings)
        return [s, v, *torch.autograd.grad(s, [static, *w], grad)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (5, 6):
        with torch.no_grad():
            static.copy_(current((T, 4096), seed=seed))
        graph.replay()
        replayed = [t.clone() for t in captured]
        for a, b in zip(replayed, step(), strict=True):
            assert torch.equal(a, b)


@every_neuron
def test_side_stream(name):
    """The kernels run on torch's current stream, after earlier work on it, and the host does not wait for them."""
    x, settings = arguments(name)
    w = [settings.pop("w").requires_grad_()] if "w" in settings else []
    grad = torch.randn_like(x)

    def step(x):
        leaf = x.detach().requires_grad_()
        s, v = getattr(functional, f"{name}_multistep")(leaf, *w, **settings)
        return [s, v, *torch.autograd.grad(s, [leaf, *w], grad)]

    expected = step(x)
    late = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(late)  # what is allocated or loaded for the first time may wait
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(400_000_000)  # a fifth of a second
        late.copy_(x)
        results = step(late)
    assert not side.query(), "the call has waited for the stream"
    side.synchronize()
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)


@every_neuron
@pytest.mark.parametrize("T", (4, 40))
def test_nothing_is_waited_for(name, T):
    x, settings = arguments(name, T)
    leaf = x.requires_grad_()
    w = settings.pop("w", None)
    w = [] if w is None else [w.requires_grad_()]
    grad = torch.randn_like(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    s, v = getattr(functional, f"{name}_multistep")(leaf, *w, **settings)
    torch.autograd.grad([s, v], [leaf, *w], [grad, grad[0]])


@every_neuron
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_same_bits_twice(name, dtype):
    x, settings = arguments(name, 20, dtype, 1_000_001)
    first, second = (run(name, x, "native", loss="sv", **settings) for _ in range(2))
    for a, b in zip((*first[:2], *first[2]), (*second[:2], *second[2]), strict=True):
        assert torch.equal(a, b)


@every_neuron
def test_nothing_is_kept_but_x(name):
    """Between forward and backward only s, v and less than a kilobyte are allocated."""
    x, settings = arguments(name, 4, M=1 << 22)
    x.requires_grad_()
    w = [settings.pop("w").requires_grad_()] if "w" in settings else []
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    s, v = getattr(functional, f"{name}_multistep")(x, *w, **settings)
    kept = torch.cuda.memory_allocated() - before - s.nbytes - v.nbytes
    assert kept <= 4096, kept


def test_more_elements_than_32_bits_count():
    T, M = 4, (1 << 29) + 24
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.empty(T, M, dtype=torch.bfloat16, device="cuda").normal_(0.8, 1.5)
    leaf = x.requires_grad_()
    s, v = functional.lif_multistep(leaf)
    s.backward(x.detach())
    for part in (slice(0, 1000), slice(M - 1000, M)):
        few = x.detach()[:, part].clone().requires_grad_()
        s_few, v_few = functional.lif_multistep(few)
        s_few.backward(few.detach())
        assert torch.equal(s[:, part], s_few) and torch.equal(v[part], v_few)
        assert torch.equal(leaf.grad[:, part], few.grad)


@pytest.mark.parametrize("name", ["v", "leak", "x"])
def test_tensors_of_two_devices(name):
    """The dispatcher runs the CUDA op if any tensor is on a GPU; the op must not read CPU memory."""
    tensors = {"x": torch.rand(2, 8), "v": torch.zeros(8), "leak": torch.tensor(0.5)}
    tensors[name] = tensors[name].to("cuda")
    with pytest.raises(RuntimeError, match="device of"):
        torch.ops.sewsnn.neuron_forward(*tensors.values(), 0, 2.0, True, 1.0, 0.0, 0, 2.0, True, 1, True)
