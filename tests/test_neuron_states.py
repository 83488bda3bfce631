"""Nodes with one or two states: kept, reset, detached, moved, copied, compiled, inside transforms."""

import copy
import pickle

import pytest
import torch
from cases import current
from neuron_cases import BACKENDS, NODES, SPECS, every_node, every_spec, learnt_of, make, state_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from sewsnn import functional, neuron

TWO = {"CUBALIF": "c", "AdaptiveLIF": "w"}
every_backend = pytest.mark.parametrize("backend", BACKENDS)
two_states = pytest.mark.parametrize("name", TWO)


def states(node):
    return [getattr(node, name) for name in node.state_names]


@every_backend
@every_node
def test_kept_states_join_calls(name, backend, device):
    """Two calls with 9 time-steps, and 18 calls of one, equal one call with 18, including gradients."""
    x = current((18, 2, 30), device=device).requires_grad_()
    whole, kept, single = (make(name, backend, **mode) for mode in ({}, {"keep_state": True}, {"step_mode": "s"}))
    s = whole(x)
    (expected,) = torch.autograd.grad(s.square().sum(), x)
    for node, parts in ((kept, x.split(9)), (single, x)):
        found = torch.cat([node(part).view(-1, 2, 30) for part in parts])
        assert torch.equal(found, s) and all(map(torch.equal, states(node), states(whole)))
        (grad,) = torch.autograd.grad(found.square().sum(), x)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)
        functional.reset_net(nn.Sequential(node))
        assert states(node) == [None] * len(node.state_names)
        first = node(x[0] if node is single else x[:9])
        assert torch.equal(first, s[0] if node is single else s[:9])


@every_node
def test_v_seq_is_that_of_the_potential(name, device):
    node = make(name, store_v_seq=True)
    x = current((5, 2, 7), device=device)
    node(x)
    assert node.v_seq.shape == x.shape and torch.equal(node.v_seq[-1], node.v) and not node.v.requires_grad
    assert all(state.shape == x.shape[1:] for state in states(node))


@two_states
def test_a_state_that_is_assigned_alone_starts_from_there(name, device):
    """The other state starts at rest."""
    x, other = current((4, 6), device=device), TWO[name]
    node, reference = make(name, keep_state=True), make(name, "torch", keep_state=True)
    for start in ({"v": 0.3}, {other: 0.2}, {"v": 0.3, other: 0.2}):
        for one in (node, reference):
            one.reset()
            for attribute, value in start.items():
                setattr(one, attribute, torch.full((6,), value, device=device))
        assert torch.equal(node(x), reference(x)) and all(map(torch.equal, states(node), states(reference)))
    rest = make(name, keep_state=True)
    rest(x)
    assert not torch.equal(states(rest)[1], states(node)[1])


@two_states
def test_a_state_that_does_not_fit_is_named(name):
    node = make(name, keep_state=True)
    node(torch.randn(3, 4))
    for x, message in ((torch.randn(3, 5), "v must have the shape"), (torch.randn(3, 4).double(), "v must be")):
        with pytest.raises((TypeError, ValueError), match=message):
            node(x)
    node.v = torch.zeros(5)
    with pytest.raises(ValueError, match=rf"{TWO[name]} must have the shape of one time-step .* needs reset\(\)"):
        node(torch.randn(3, 5))


@every_backend
@every_node
def test_copies_and_detached_states(name, backend, device):
    node = make(name, backend, keep_state=True, store_v_seq=True)
    x = current((3, 2, 8), device=device).requires_grad_()
    node(x)
    assert all(state.requires_grad for state in states(node))
    for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert all(map(torch.equal, states(twin), states(node)))
        assert not any(state.requires_grad for state in states(twin))
        assert torch.equal(twin(x), copy.deepcopy(node)(x))
    node.detach()
    later = current((3, 2, 8), device=device, seed=1).requires_grad_()
    node(later).sum().backward()
    assert x.grad is None and later.grad is not None
    assert all(state.dtype == torch.float64 for state in states(node.double()))
    assert not node.state_dict()


@pytest.mark.parametrize("reentrant", [True, False])
@two_states
def test_activation_checkpointing_checks_every_state(name, reentrant):
    """Both states must start where the forward started: reset, or assigned inside the checkpointed function."""
    x = torch.randn(3, 4, requires_grad=True)

    def gradient(start, wrap=True):
        node, x.grad = make(name, keep_state=True), None
        start(node)
        node.detach_reset = True

        def body(x):
            start(node)
            return node(x)

        (checkpoint(body, x, use_reentrant=reentrant) if wrap else body(x)).sum().backward()
        return x.grad

    def both(node):
        node.v = torch.full((4,), 0.1)
        setattr(node, TWO[name], torch.full((4,), 0.2))

    for start in (both, neuron.BaseNode.reset):
        assert torch.equal(gradient(start), gradient(start, wrap=False))
    for only in ("v", TWO[name]):
        with pytest.raises(RuntimeError, match="at the beginning of the checkpointed function"):
            gradient(lambda node, only=only: setattr(node, only, torch.full((4,), 0.1)))


@every_node
def test_a_kept_state_cannot_enter_a_transform(name):
    with pytest.raises(RuntimeError, match=r"inside a torch\.func transform"):
        torch.func.vmap(make(name, keep_state=True))(torch.randn(2, 3, 4))


# ---- the parts of torch


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_node
def test_gradients_per_sample(name, device):
    node = make(name)
    x = current((4, 3, 5), device=device)

    def loss(x):
        return (node(x) * torch.arange(5, device=device)).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    node.reset()
    assert torch.equal(torch.func.grad(loss)(x), expected)
    assert torch.equal(torch.func.vmap(torch.func.grad(loss), in_dims=1, out_dims=1)(x), expected)
    assert states(node) == [None] * len(node.state_names)


@every_node
def test_autocast(name, device):
    linear, node = nn.Linear(16, 16, device=device), make(name)
    x = current((4, 8, 16), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        z = linear(x)
        s = node(z)
    s.float().sum().backward()
    assert z.dtype == s.dtype == torch.bfloat16 and linear.weight.grad.abs().sum() > 0
    assert all(state.dtype == torch.float32 for state in states(node))


@pytest.mark.parametrize("name", [name for name in NODES if " " not in name])
def test_compiled(name, device):
    torch._dynamo.reset()
    eager, node = make(name, keep_state=True), make(name, keep_state=True)
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    x = current((20, 2, 6), device=device).requires_grad_()
    for one in (eager, node):
        one.reset()
    found, expected = compiled(x), eager(x)
    assert torch.equal(found, expected) and all(map(torch.equal, states(node), states(eager)))
    grads = [torch.autograd.grad(s.square().sum(), x)[0] for s in (found, expected)]
    assert torch.equal(*grads)
    with torch.no_grad():
        assert torch.equal(compiled(x), eager(x)) and all(map(torch.equal, states(node), states(eager)))


@every_spec
def test_opcheck(name, device):
    spec = SPECS[name]
    for T, v_mode in ((3, 1), (20, 2), (20, 0)):
        x = current((T, 2, 3, 2), device=device)
        state, learnt = state_of(spec, x.shape[1:], device=device), learnt_of(spec, 3, device=device)
        leaves = [None if t is None else t.requires_grad_() for t in (x, state, learnt)]
        op, arguments = torch.ops.sewsnn.neuron_forward.default, (*spec.arguments, v_mode)
        torch.library.opcheck(op, (*leaves, *arguments, True, *spec.tail))
        detached = [None if t is None else t.detach() for t in leaves]
        s, out, kept = op(*detached, *arguments, True, *spec.tail)
        backward = (s, out if v_mode else None, *detached, kept, *arguments, True, learnt is not None, *spec.tail)
        torch.library.opcheck(torch.ops.sewsnn.neuron_backward.default, backward)
