"""Neurons as modules: state, modes, copies."""

import copy
import math
import pickle

import pytest
import torch
from cases import current
from torch import nn

from sewsnn import functional, neuron, surrogate

NODES = {
    "IF": lambda **kw: neuron.IFNode(**kw),
    "LIF": lambda **kw: neuron.LIFNode(tau=2.0, **kw),
    "PLIF": lambda **kw: neuron.ParametricLIFNode(init_tau=2.5, **kw),
}
every_node = pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())


def test_defaults_are_the_papers():
    node = neuron.LIFNode()
    assert (node.tau, node.decay_input, node.v_threshold, node.v_reset) == (2.0, True, 1.0, 0.0)
    assert node.surrogate_function == surrogate.ATan(2.0)
    assert node.detach_reset and node.step_mode == "m" and node.backend == "auto" and not node.store_v_seq


def test_positional_arguments_are_spikingjellys():
    assert neuron.IFNode(0.5, None, surrogate.Sigmoid(4.0), False).v_reset is None
    assert neuron.LIFNode(3.0, False, 0.5).v_threshold == 0.5


@every_node
def test_starts_from_rest_every_call(node, device):
    node = node(v_reset=-0.1, store_v_seq=True).to(device)
    x = current((4, 2, 3), device=device)
    first = node(x)
    v, v_seq = node.v, node.v_seq
    assert torch.equal(node(x), first) and torch.equal(node.v, v)
    assert torch.equal(v_seq[-1], v) and not v.requires_grad and v.shape == x.shape[1:]


@every_node
def test_kept_state_joins_calls(node, device):
    """Two calls with 3 time-steps equal one call with 6, including gradients."""
    x = current((6, 2, 30), device=device).requires_grad_()
    whole = node().to(device)
    (expected,) = torch.autograd.grad(whole(x).square().sum(), x)
    kept = node(keep_state=True).to(device)
    s = torch.cat([kept(x[:3]), kept(x[3:])])
    assert torch.equal(s, whole(x)) and torch.equal(kept.v, whole.v)
    (grad,) = torch.autograd.grad(s.square().sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)
    kept.reset()
    assert kept.v is None and torch.equal(kept(x[:3]), s[:3])


@every_node
def test_single_step_mode(node, device):
    x = current((5, 2, 30), device=device)
    multi, single = node().to(device), node(step_mode="s").to(device)
    expected = multi(x)
    assert torch.equal(torch.stack([single(x_t) for x_t in x]), expected) and torch.equal(single.v, multi.v)
    functional.reset_net(nn.Sequential(single))
    assert torch.equal(single(x[0]), expected[0])


def test_detach_truncates_the_graph(device):
    node = neuron.IFNode(keep_state=True)
    x = current((3, 5), device=device).requires_grad_()
    node(x)
    node.detach()
    later = current((3, 5), device=device, seed=1).requires_grad_()
    node(later).sum().backward()
    assert x.grad is None and later.grad is not None


@every_node
def test_copies_and_pickles_with_a_kept_graph(node, device):
    original = node(keep_state=True, store_v_seq=True).to(device)
    x = current((3, 2, 8), device=device).requires_grad_()
    original(x)
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert torch.equal(twin.v, original.v) and not twin.v.requires_grad
        assert torch.equal(twin(x), copy.deepcopy(original)(x))
        assert twin.v is not original.v


def test_plif_parameter():
    node = neuron.ParametricLIFNode(init_tau=3.0)
    assert set(node.state_dict()) == {"w"} and node.w.shape == ()
    assert node.w.item() == pytest.approx(-math.log(2)) and node.tau == pytest.approx(3.0)
    assert not neuron.LIFNode().state_dict()


def test_plif_learns_its_tau(device):
    x = current((8, 200), device=device)
    node = neuron.ParametricLIFNode(init_tau=2.0).to(device)
    target = neuron.LIFNode(tau=5.0)(x).mean()
    optimizer = torch.optim.SGD(node.parameters(), 3.0)
    losses = []
    for _ in range(60):
        loss = (node(x).mean() - target).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert node.tau > 3 and losses[-1] < losses[0] / 5


def test_frozen_tau(device):
    node = neuron.ParametricLIFNode(tau_grad="frozen").to(device)
    x = current((4, 10), device=device).requires_grad_()
    node(x).sum().backward()
    assert node.w.grad is None and x.grad is not None


def test_state_moves_with_the_module():
    node = neuron.IFNode(keep_state=True)
    node(current((3, 4)))
    assert node.double().v.dtype == torch.float64


def test_store_v_off(device):
    node = neuron.LIFNode(store_v=False)
    x = current((4, 10), device=device)
    assert torch.equal(node(x), neuron.LIFNode()(x)) and node.v is None


def test_reset_net_reaches_every_neuron():
    net = nn.Sequential(neuron.IFNode(), nn.Sequential(nn.Identity(), neuron.LIFNode()))
    net(current((3, 4)))
    functional.reset_net(net)
    assert net[0].v is None and net[1][1].v is None


def test_repr_names_the_settings():
    text = repr(neuron.ParametricLIFNode(init_tau=4.0, v_reset=None))
    assert "tau=4" in text and "v_reset=None" in text and "ATan(alpha=2)" in text


def test_a_deleted_setting_is_missed():
    """A node must not go on with the value that it had."""
    node, x = neuron.LIFNode(), torch.rand(4, 2, 3)
    node(x)
    del node.v_threshold
    with pytest.raises(AttributeError, match="v_threshold"):
        node(x)
