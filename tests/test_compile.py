"""torch.compile, torch.export and opcheck."""

import numpy as np
import pytest
import torch
from cases import current

from sewsnn import functional, models, neuron, surrogate

NODES = {
    "IF": lambda **kw: neuron.IFNode(**kw),
    "LIF": lambda **kw: neuron.LIFNode(tau=3.0, **kw),
    "PLIF": lambda **kw: neuron.ParametricLIFNode(**kw),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


def values(module, x):
    """Output and gradients of one call."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    s = module(x)
    (s * torch.linspace(-1, 1, s.numel(), device=s.device).view_as(s)).sum().backward()
    return [s.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


class Triangle(surrogate.Surrogate):
    def gradient(self, x):
        return (1 - x.abs()).clamp(min=0)


@pytest.mark.parametrize("settings", [{"surrogate_function": Triangle()}, {"backend": "torch"}], ids=["own", "torch"])
@pytest.mark.filterwarnings("ignore::sewsnn.ops.load.BackendWarning")
def test_compile_fullgraph_of_the_reference(settings, device):
    """A surrogate without a compiled form, and the torch backend."""
    module = neuron.LIFNode(**settings).to(device)
    x = current((4, 2, 8), device=device)
    expected = values(module, x)
    for a, b in zip(values(torch.compile(module, fullgraph=True, backend="aot_eager"), x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"v_reset": None, "store_v_seq": True}], ids=["default", "soft, v_seq"])
@pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())
def test_compile_fullgraph(node, settings, device):
    module = node(**settings).to(device)
    x = current((20, 2, 8), device=device)
    expected = values(module, x)
    v = module.v
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(values(compiled, x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.equal(module.v, v)


def test_compile_with_kept_state(device):
    eager, module = neuron.LIFNode(keep_state=True), neuron.LIFNode(keep_state=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for i in range(3):
            x = current((3, 8), device=device, seed=i)
            assert torch.equal(compiled(x), eager(x)) and torch.equal(module.v, eager.v)


def test_compile_any_batch(device):
    module = neuron.LIFNode()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 5, 9):
        x = current((4, n, 6), device=device)
        for a, b in zip(values(compiled, x), values(module, x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def small_net(device, **settings):
    torch.manual_seed(0)
    # At least 8 channels: with fewer, torch 2.13 on CPUs without AVX-512 gets the weight's gradient of a strided 1x1
    # convolution wrong in channels_last, which inductor chooses.
    net = models.create_model("sew_resnet", blocks=[1, 1], widths=[8, 16], num_classes=3, stem="small", **settings)
    return net.to(device)


def test_inductor_trains_a_network(device):
    x = current((2, 3, 8, 8), device=device)
    expected = values(small_net(device), x)
    actual = values(torch.compile(small_net(device), fullgraph=True), x)
    # Inductor's BN rounds otherwise, spikes at the threshold may flip: the network as a whole must agree.
    torch.testing.assert_close(actual[0], expected[0], rtol=0.02, atol=0.02)
    for a, b in zip(actual[1:], expected[1:], strict=True):
        assert (a - b).norm() <= 0.1 * b.norm() + 1e-4


def test_export(device):
    net = small_net(device, fused=False).eval()
    x = current((2, 3, 8, 8), device=device)
    program = torch.export.export(net, (x,))
    assert any("sewsnn.neuron_forward" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=0)


def samples(device):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        state = torch.float64 if dtype == torch.float64 else torch.float32
        for kind, T, v_mode in ((0, 3, 1), (1, 20, 2), (2, 4, 0), (2, 20, 1)):
            x = current((T, 2, 5), dtype, device).requires_grad_()
            v = current((2, 5), state, device, seed=2).requires_grad_() if T == 20 else None
            leak = torch.tensor(0.4, dtype=state, device=device, requires_grad=True) if kind == 2 else None
            options = (kind, 2.5, True, 1.0, 0.0 if T == 3 else None, kind, 2.0, T != 20)
            yield x, v, leak, options, v_mode


def test_opcheck(device):
    for x, v, leak, options, v_mode in samples(device):
        torch.library.opcheck(torch.ops.sewsnn.neuron_forward.default, (x, v, leak, *options, v_mode, True))
        detached = [None if t is None else t.detach() for t in (x, v, leak)]
        s, v_out, kept = torch.ops.sewsnn.neuron_forward(*detached, *options, v_mode, True)
        arguments = (s, v_out if v_mode else None, *detached, kept, *options, v_mode, v is not None, leak is not None)
        torch.library.opcheck(torch.ops.sewsnn.neuron_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [None, True])
def test_numbers_that_change_between_calls(dynamic):
    """Each value gets its own graph and right results with gradients; nodes also take numbers of numpy."""
    torch._dynamo.reset()

    def calls(x, th, tau, w):
        s = functional.lif_multistep(x, v_threshold=th, tau=tau, v_reset=th - 2)[0]
        s = s + functional.if_multistep(x, v_threshold=th, surrogate_function=surrogate.ATan(tau))[0]
        return s + functional.plif_multistep(x, w, v_threshold=th, v_reset=None)[0]

    compiled = torch.compile(calls, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    w = torch.tensor(0.3, requires_grad=True)
    for th, tau, n in ((1.0, 2.0, 5), (0.5, 2.5, 5), (0.25, 3, 6), (0.75, 4.0, 7)):
        x = torch.randn(4, n, requires_grad=True)
        found, expected = compiled(x, th, tau, w), calls(x, th, tau, w)
        assert torch.equal(found, expected)
        for a, b in zip(*(torch.autograd.grad(s.sum(), (x, w)) for s in (found, expected)), strict=True):
            torch.testing.assert_close(a, b)
    node, x = neuron.LIFNode(tau=np.float32(2.5), v_threshold=np.float64(0.5)), torch.randn(4, 5)
    compiled = torch.compile(node, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tau in (2.5, 3.0, np.float32(4.5)):
        node.tau = tau
        assert torch.equal(compiled(x), functional.lif_multistep(x, tau=float(tau), v_threshold=0.5)[0])


@pytest.mark.parametrize("dynamic", [None, True])
def test_networks_on_images_of_several_sizes(dynamic):
    """Inductor has no layout for convolutions with symbolic height and width (pytorch#185510)."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = models.create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3, T=2).eval()
    compiled = torch.compile(net, dynamic=dynamic)
    for size in (32, 40, 48):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(compiled(x), net(x))
