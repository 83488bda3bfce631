"""Batch norm + neuron + connection in one op, with the neurons besides IF, LIF and PLIF."""

import pytest
import torch
from bn_cases import CONNECTIONS, norm
from cases import current
from torch import nn

from sewsnn import analysis, layers, neuron, surrogate

NODES = {
    "CUBALIF": lambda **kw: neuron.CUBALIFNode(**kw),
    "AdaptiveLIF": lambda **kw: neuron.AdaptiveLIFNode(a=0.2, b=0.3, w_rest=0.1, **kw),
    "ILIF": lambda **kw: neuron.ILIFNode(**kw),
    "ILIF / D": lambda **kw: neuron.ILIFNode(normalize=True, detach_reset=True, **kw),
    "QIF": lambda **kw: neuron.QIFNode(**kw),
    "threshold": lambda **kw: neuron.LIFNode(3.0, learn_threshold=True, **kw),
    "channels": lambda **kw: neuron.ParametricLIFNode(3.0, learn_threshold=True, channels=8, **kw),
}
every_node = pytest.mark.parametrize("name", NODES)


def results(name, z, connection, training, fused, T=None):
    """Outputs and gradients of one call."""
    node = NODES[name]().to(z.device, z.dtype)
    for i, parameter in enumerate(node.parameters()):
        parameter.data += 0.1 * i + 0.05 * torch.arange(parameter.numel()).view_as(parameter)
    bn = norm(8, z.dtype, z.device, training)
    connect_f, before = CONNECTIONS[connection]
    z = z.detach().requires_grad_()
    shape = z.shape if T is None else (T, *z.shape)
    shortcut = current(shape, z.dtype, z.device, seed=3).round().requires_grad_() if connect_f else None
    output = layers.bn_neuron(
        z, bn, node, shortcut, connect_f=connect_f, connect_before=before, T=T, return_skip=True, fused=fused
    )
    loss = (output.out * current(output.out.shape, z.dtype, z.device, seed=5)).sum() + output.skip.square().sum()
    leaves = [t for t in (z, shortcut, bn.weight, bn.bias, *node.parameters()) if t is not None]
    states = [getattr(node, state) for state in node.state_names]
    assert output.v is node.v or torch.equal(output.v, node.v)
    return output.out, *states, *bn.buffers(), *torch.autograd.grad(loss, leaves)


PAIRS = [(name, c) for name in NODES for c in CONNECTIONS if c not in ("AND", "IAND") or not name.startswith("ILIF")]


@pytest.mark.parametrize("name, connection", PAIRS)
def test_equals_the_modules(name, connection, device):
    """In float64, where the statistics of the op and of torch differ by less than the distance to any threshold."""
    for z, T, training in (
        (current((18, 2, 8, 3, 2), torch.float64, device), None, True),
        (current((4, 2, 8, 5, 1), torch.float64, device), None, False),
        (current((3, 8, 3, 3), torch.float64, device), 4, True),
    ):
        fused, modules = (results(name, z, connection, training, fused, T) for fused in (True, False))
        assert torch.equal(fused[0], modules[0])
        for found, expected in zip(fused[1:], modules[1:], strict=True):
            scale = float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * max(scale, 1))


@every_node
def test_the_op_runs_for_them(name, monkeypatch, device):
    """The neuron's own call does not take place, in training, evaluation and without a norm."""
    node = NODES[name]().to(device)
    z = current((4, 2, 8, 3, 3), device=device)
    expected = node(z)
    calls = []
    monkeypatch.setattr("sewsnn.functional.multistep", lambda *a, **k: calls.append(1))
    assert torch.equal(layers.bn_neuron(z, None, node).out, expected)
    for training in (True, False):
        layers.bn_neuron(z, norm(8, device=device, training=training), node)
    assert not calls


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("connect_f", ["AND", "IAND"])
def test_and_and_iand_need_spikes_of_0_or_1(connect_f, fused):
    z = torch.randn(4, 2, 8, 3, 3)
    with pytest.raises(ValueError, match=rf"connect_f='{connect_f}' needs spikes of 0 or 1, but ILIFNode sends"):
        layers.bn_neuron(z, nn.BatchNorm2d(8), neuron.ILIFNode(), z, connect_f=connect_f, fused=fused)


def test_packed_spikes():
    """Spikes of two states are packed; counts are not."""
    z = torch.randn(4, 2, 8, 3, 3)
    assert layers.bn_neuron(z, None, neuron.ILIFNode(), pack_spikes=True).bits is None
    output = layers.bn_neuron(z, None, neuron.CUBALIFNode(), pack_spikes=True)
    bits = (output.bits.view(4, -1, 1).int() >> torch.arange(8)) & 1
    assert torch.equal(bits.flatten(1), output.out.flatten(1).int()) and bits.any()


@every_node
def test_the_stem(name, device):
    """The op of the stem has only IF, LIF and PLIF: the others run as modules."""
    node = NODES[name](store_v=False).to(device)
    z, bn = current((2, 8, 8, 8), device=device), norm(8, device=device)
    pooled = layers.bn_neuron_pool(z, bn, node, T=3)
    out = layers.bn_neuron(z, norm(8, device=device), node, T=3).out
    assert torch.equal(pooled, torch.max_pool2d(out.flatten(0, 1), 3, 2, 1).view_as(pooled))


def test_compiled_training(device):
    torch._dynamo.reset()
    z = current((4, 2, 8, 3, 3), device=device)
    for name in ("CUBALIF", "channels"):
        layer = layers.BNNeuron(8, NODES[name](), "ADD").to(device)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        grads = []
        for run in (layer, compiled):
            out = run(z, z)
            grads.append([out.detach(), *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
        assert all(map(torch.equal, *grads))


def test_counts_are_counted_as_spikes():
    """n spikes are n accumulations in each neuron that reads them, and n spikes in the firing rate."""
    node = neuron.ILIFNode(surrogate_function=surrogate.MultiLevelSpikeCount(3))
    net = nn.Sequential(node, nn.Linear(6, 5, bias=False))
    x = 3 * torch.rand(4, 2, 6)
    counts = node(x)
    found = analysis.count_operations(net, x).layers[-1]
    assert counts.max() > 1 and found.spike_input and found.synops == pytest.approx(float(counts.sum()) * 5 / 2)
    assert analysis.firing_rates(net, [x])["0"] == pytest.approx(float(counts.mean()))
