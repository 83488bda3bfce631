"""The state of converted nodes: chained calls, reset, detach, copies, modes, optimizers."""

import copy
import pickle
import warnings

import pytest
import torch
from sj_cases import FURTHER, NODES, V2, converted, current, make
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import nn

import sewsnn

every_node = pytest.mark.parametrize("kind", [*NODES, *FURTHER])


def pair(kind, **settings):
    node = make(kind, **{"step_mode": "m", **settings})
    return node, converted(node)[0]


def rest(kind):
    return -0.1 if kind == "QIF" else 0.0


@every_node
def test_the_objects_stay(kind):
    """Objects that a script holds stay valid: classes, parameters, hooks, names."""
    node = make(kind, step_mode="m")
    net = nn.Sequential(layer.Linear(4, 4), node)
    calls = []
    node.register_forward_hook(lambda *_: calls.append(1))
    keys, parameters, surrogate_function = list(net.state_dict()), list(net.parameters()), node.surrogate_function
    sewsnn.convert.from_spikingjelly(net)
    assert net[1] is node and node.surrogate_function is surrogate_function
    assert isinstance(node, (NODES | FURTHER)[kind]) and isinstance(node, sewsnn.neuron.BaseNode)
    assert list(net.state_dict()) == keys and all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    node(current(2, 4))
    assert calls == [1]


@every_node
def test_state_persists_until_reset(kind):
    node, after = pair(kind)
    assert after.v == node.v == rest(kind)
    x = current(2, 3, 40)
    first = node(x), after(x)
    for _ in range(2):
        assert torch.equal(node(x), after(x)) and torch.equal(node.v, after.v)
    functional.reset_net(node)
    functional.reset_net(after)
    assert after.v == rest(kind) and isinstance(after.v, float)
    assert torch.equal(after(x), first[1]) and torch.equal(*first)


@every_node
def test_state_keeps_its_graph(kind):
    node, after = pair(kind)
    found = []
    for module in (node, after):
        x = current(4, 2, 30).requires_grad_()
        module(x[:2])
        assert module.v.requires_grad
        found += torch.autograd.grad(module(x[2:]).sum(), x)
    torch.testing.assert_close(found[1], found[0])
    assert found[1][:2].abs().sum() > 0


@every_node
def test_detach_cuts_in_place(kind):
    """detach works as in SpikingJelly, whichever operation made v."""
    for settings in ({}, {"store_v_seq": True}, {"step_mode": "s"}):
        _, after = pair(kind, **settings)
        x = current(2, 3).requires_grad_()
        after(x)
        v = after.v
        functional.detach_net(after)
        assert after.v is v and not v.requires_grad
        after(x).sum().backward()


@every_node
def test_user_set_v(kind):
    node, after = pair(kind)
    x = current(2, 3, 20)
    for v in (0.75, -0.5, torch.full((3, 20), 0.25)):
        node.v = after.v = v
        assert torch.equal(node(x), after(x)) and torch.equal(node.v, after.v)
        node.reset(), after.reset()


@every_node
def test_another_shape_with_a_kept_v(kind):
    """2.0 starts from rest; 0.0.0.0.14 raises an error unless v can be broadcast."""
    node, after = pair(kind)
    x, other = current(2, 3, 20), current(2, 5, 20)
    node(x), after(x)
    if V2:
        assert torch.equal(node(other), after(other)) and torch.equal(node.v, after.v)
        return
    with pytest.raises(RuntimeError):
        node(other)
    with pytest.raises(ValueError, match=r"needs reset\(\) before another shape"):
        after(other)
    node, after = pair(kind)
    node.v = after.v = torch.full((1, 20), 0.5)
    assert torch.equal(node(x), after(x))


@every_node
def test_step_mode_changes_after_the_conversion(kind):
    node, after = pair(kind)
    x = current(4, 3, 20)
    for module in (node, after):
        functional.set_step_mode(module, "s")
    assert all(torch.equal(node(t), after(t)) for t in x) and torch.equal(node.v, after.v)
    assert after.v.shape == (3, 20)
    for module in (node, after):
        functional.set_step_mode(module, "m")
    assert torch.equal(node(x), after(x)) and torch.equal(node.v, after.v)
    with pytest.raises(ValueError, match="step_mode"):
        after.step_mode = "x"


@every_node
def test_store_v_seq_changes_after_the_conversion(kind):
    node, after = pair(kind)
    x = current(4, 3, 20)
    for wanted in (True, False, True):
        for module in (node, after):
            module.reset()
            module.store_v_seq = wanted
            module(x)
        if wanted:
            assert torch.equal(node.v_seq, after.v_seq)
        assert [name for name, _ in node.named_memories()] == [name for name, _ in after.named_memories()]
        assert (getattr(node, "v_seq", None) is None) == (getattr(after, "v_seq", None) is None)


@every_node
def test_scalars_in_single_step_mode(kind):
    node, after = pair(kind, step_mode="s")
    for value in (0.7, 1.5, 0.9):
        x = torch.tensor(value)
        assert torch.equal(node(x), after(x)) and node.v.shape == after.v.shape == ()


@every_node
def test_copies(kind):
    """deepcopy, pickle and torch.save before and after a call: copies have the state's values but not its graph."""
    _, after = pair(kind, store_v_seq=True)
    x = current(3, 2, 10).requires_grad_()
    for called in (False, True):
        if called:
            after(x)
        for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
            assert type(copied) is type(after) and copied is not after
            if called:
                assert torch.equal(copied.v, after.v) and not copied.v.requires_grad and after.v.requires_grad
            state = copy.deepcopy(after)
            assert torch.equal(copied(x), state(x))


@every_node
def test_moves_and_casts_carry_the_state(kind):
    node, after = pair(kind)
    x = current(2, 3, 10)
    for module in (node, after):
        module(x)
        module.double()
    assert after.v.dtype == torch.float64
    assert torch.equal(node(x.double()), after(x.double())) and torch.equal(node.v, after.v)
    # If x has another dtype than the state, the dtype of x counts.
    assert after(x).dtype == x.dtype


@every_node
def test_replicas_have_memories_of_their_own(kind):
    """Replicas, as nn.DataParallel makes them, work."""
    _, after = pair(kind)
    replica = after._replicate_for_data_parallel()
    replica._parameters = after._parameters
    replica(current(2, 3))
    assert isinstance(replica.v, torch.Tensor) and after.v == rest(kind)


def test_no_warnings(caplog):
    """reset_net, set_step_mode, detach_net and set_backend recognise converted modules."""
    net = nn.Sequential(*(node() for node in NODES.values()))
    functional.reset_net(net)  # 2.0 caches the list of modules
    sewsnn.convert.from_spikingjelly(net)
    messages = []
    if V2:
        from spikingjelly.logger import logger

        logger.enable("spikingjelly")
        sink = logger.add(messages.append, level="WARNING")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.set_step_mode(net, "m")
        net(current(2, 3))
        functional.detach_net(net)
        functional.reset_net(net)
        if not V2:
            functional.set_backend(net, "torch", instance=neuron.IFNode)
            functional.set_backend(net, "torch", instance=neuron.BaseNode)
    if V2:
        logger.remove(sink)
    assert not messages and not caplog.records
    assert all(node.v == 0.0 and node.step_mode == "m" for node in net)


@pytest.mark.skipif(V2, reason="2.0 has no backends")
def test_the_backend_is_stored_and_ignored():
    node = neuron.LIFNode(step_mode="m", backend="torch")
    after, _ = converted(node)
    after._backend = "cupy"  # the effect of the setter if CuPy is installed
    assert torch.equal(after(current(3, 4)), node(current(3, 4))) and after.backend == "cupy"
    with pytest.raises(NotImplementedError):
        after.backend = "no such backend"


def test_monitors():
    net = nn.Sequential(layer.Linear(6, 6), neuron.IFNode(step_mode="m"), layer.Linear(6, 6), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    after, _ = converted(net)
    x = current(3, 2, 6)
    seen = []
    for model in (net, after):
        spikes = monitor.OutputMonitor(model, neuron.BaseNode)
        potentials = monitor.AttributeMonitor("v", False, model, neuron.BaseNode)
        model(x)
        seen.append([*spikes.records, *potentials.records])
    assert len(seen[0]) == 4 and all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_an_optimizer_made_before_trains_w():
    node = neuron.ParametricLIFNode(step_mode="m")
    optimizer = torch.optim.SGD(node.parameters(), 0.1)
    sewsnn.convert.from_spikingjelly(node)
    before = float(node.w.detach())
    node(current(4, 20)).sum().backward()
    optimizer.step()
    assert float(node.w.detach()) != before and node.w.grad is not None
    assert node.tau == pytest.approx(1 / float(node.w.detach().sigmoid()))


def test_firing_rates():
    """sewsnn.analysis recognises converted nodes."""
    net = nn.Sequential(layer.Linear(6, 6, step_mode="m"), neuron.IFNode(step_mode="m"))
    sewsnn.convert.from_spikingjelly(net)
    assert list(sewsnn.analysis.firing_rates(net, [current(3, 2, 6)])) == ["1"]


def test_firing_rates_of_several_batches_and_of_nodes_that_are_left():
    """Each batch starts at rest, and nodes that stay SpikingJelly's are unchanged afterwards."""
    left = neuron.IFNode(step_mode="m", surrogate_function=surrogate.PiecewiseLeakyReLU())
    net = nn.Sequential(layer.Linear(6, 6, step_mode="m"), neuron.IFNode(step_mode="m"), left)
    sewsnn.convert.from_spikingjelly(net)
    x = current(3, 2, 6) + 0.5
    expected = net(x)
    functional.reset_net(net)
    once = sewsnn.analysis.firing_rates(net, [x])
    assert sewsnn.analysis.firing_rates(net, [x, x, x[:, :1]])["1"] != 0
    assert sewsnn.analysis.firing_rates(net, [x, x]) == once
    assert left.v == 0.0 and torch.equal(net(x), expected)


def test_a_pooling_of_ones_own_at_the_end():
    class Mean(nn.Module):
        step_mode = "m"

        def forward(self, x_seq):
            return x_seq.mean((-1, -2))

    for build in (sew_resnet.sew_resnet18, spiking_resnet.spiking_resnet18):
        options = {"cnf": "ADD"} if build is sew_resnet.sew_resnet18 else {}
        net = build(spiking_neuron=neuron.IFNode, detach_reset=True, num_classes=5, **options).eval()
        functional.set_step_mode(net, "m")
        net.avgpool = Mean()
        x = torch.randn(2, 1, 3, 32, 32)
        expected = net(x)
        functional.reset_net(net)
        sewsnn.convert.from_spikingjelly(net)
        torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-4)


def test_sewsnns_reset_net():
    node = neuron.IFNode(step_mode="m")
    sewsnn.convert.from_spikingjelly(node)
    node(current(2, 3))
    sewsnn.functional.reset_net(node)
    assert node.v == 0.0


@pytest.mark.skipif(not V2, reason="0.0.0.0.14 has no functional form")
@every_node
def test_functional_form(kind):
    from spikingjelly.activation_based import base

    node, after = pair(kind)
    x = current(3, 2, 20)
    states = tuple(torch.zeros(2, 20) for _ in node.memories())
    expected = base.to_functional_forward(node)((x,), states)
    actual = base.to_functional_forward(after)((x,), states)
    for one, other in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(one, other)


@every_node
def test_without_compiled_kernels(kind, monkeypatch):
    """Without kernels the reference runs: the same spikes, and a v that can be detached in place."""
    monkeypatch.setattr(sewsnn.functional, "resolve_backend", lambda *_: "torch")
    node, after = pair(kind)
    x = current(3, 2, 20).requires_grad_()
    for _ in range(2):
        assert torch.equal(node(x), after(x)) and torch.equal(node.v, after.v)
        functional.detach_net(node), functional.detach_net(after)
