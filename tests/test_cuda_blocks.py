"""Tests of the fused blocks that need a GPU: networks in a CUDA graph, no synchronisation, reproducible bits."""

import pytest
import torch
from torch import nn

from sewsnn import layers, models, neuron

pytestmark = pytest.mark.cuda  # conftest.py leaves the file out without a CUDA device


@pytest.fixture(autouse=True)
def _on_cuda():
    yield
    torch.cuda.set_sync_debug_mode("default")


def network(**settings):
    torch.manual_seed(0)
    model = models.create_model("sew_resnet", blocks=[1, 2], widths=[16, 32], num_classes=5, T=4, **settings)
    return model.cuda().to(memory_format=torch.channels_last)


def step(model, x, dtype=torch.bfloat16):
    """Logits and all gradients of a training step."""
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        logits = model(x)
    return [logits, *torch.autograd.grad(logits.float().square().sum(), list(model.parameters()))]


def images(seed):
    torch.manual_seed(seed)
    return torch.rand(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("settings", [{}, {"connect_f": "IAND"}, {"residual": "spiking", "pack_spikes": True}], ids=str)
def test_a_network_in_a_graph(settings):
    """A captured forward + backward, replayed on other images, gives the results of direct calls."""
    model, static = network(**settings), images(1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(model, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(model, static)
    counted = int(model.bn1.num_batches_tracked)
    for seed in (2, 3):
        static.copy_(images(seed))
        graph.replay()
        replayed = [t.clone() for t in captured]
        assert torch.equal(replayed[0], step(model, static)[0])
    assert int(model.bn1.num_batches_tracked) == counted + 4


def test_nobody_waits():
    """The host waits neither in a step nor for the statistics, including the cumulative average."""
    model, x = network(), images(1)
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        bn.momentum = None
    step(model, x)
    torch.cuda.set_sync_debug_mode("error")
    step(model, x)


@pytest.mark.parametrize("connect_f", ("ADD", "AND", "IAND"))
def test_the_same_bits_twice(connect_f):
    torch.manual_seed(0)
    z = torch.randn(4, 8, 64, 14, 14, device="cuda", requires_grad=True)
    shortcut = torch.randint(0, 2, z.shape, device="cuda").float().requires_grad_()
    bn, node = nn.BatchNorm2d(64).cuda(), neuron.ParametricLIFNode(store_v=False).cuda()
    grad = torch.randn_like(z)
    results = []
    for _ in range(2):
        out = layers.bn_neuron(z, bn, node, shortcut, connect_f=connect_f).out
        results.append([out, *torch.autograd.grad(out, [z, shortcut, *bn.parameters(), *node.parameters()], grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_values_that_are_not_finite():
    """A GPU raises no error, because the host would have to wait; the running statistics stay unchanged."""
    bn = nn.BatchNorm2d(8).cuda()
    z = torch.rand(4, 2, 8, 5, 5, device="cuda")
    z[0, 0, 3, 0, 0] = torch.inf
    layers.bn_neuron(z, bn, neuron.IFNode())
    assert torch.equal(bn.running_mean, torch.zeros_like(bn.running_mean))
    assert torch.equal(bn.running_var, torch.ones_like(bn.running_var))
