"""BNNeuron, the fused op as a layer: its state, its copies, and the cases in which its modules run instead."""

import copy
import pickle
import warnings

import pytest
import torch
from bn_cases import norm
from cases import EPS, current
from torch import nn

from sewsnn import BackendWarning, neuron
from sewsnn.analysis import firing_rates
from sewsnn.layers import BNNeuron, bn_neuron
from sewsnn.layers.connection import connection_of
from sewsnn.layers.plan import plan
from sewsnn.ops import bn as native
from sewsnn.ops import load
from sewsnn.surrogate import ATan, Surrogate

NAMES = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def layer_like(bn, node, device="cpu", **settings):
    """A BNNeuron with the numbers of a batch norm."""
    layer = BNNeuron(bn.num_features, node, **settings).to(device, bn.weight.dtype)
    layer.load_state_dict({**bn.state_dict(), **layer.neuron.state_dict(prefix="neuron.")})
    return layer.train(bn.training)


def test_state_is_that_of_batch_norm_and_of_the_neuron():
    """Names, their order and initial values are those of nn.BatchNorm2d; loading works in both directions."""
    layer, bn, node = BNNeuron(4, neuron.ParametricLIFNode()), nn.BatchNorm2d(4), neuron.ParametricLIFNode()
    assert list(layer.state_dict()) == [*bn.state_dict(), "neuron.w"] == [*NAMES, "neuron.w"]
    for name, value in bn.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value) and layer.state_dict()[name].dtype == value.dtype
    trained = norm(4)
    trained(current((5, 4, 3, 3)))
    layer.load_state_dict({**trained.state_dict(), "neuron.w": torch.tensor(0.7)})
    bn.load_state_dict({name: layer.state_dict()[name] for name in NAMES})
    node.load_state_dict({"w": layer.state_dict()["neuron.w"]})
    for name, value in trained.state_dict().items():
        assert torch.equal(bn.state_dict()[name], value)
    assert layer.num_batches_tracked == 1 and node.w == torch.tensor(0.7)


def test_checkpoints_from_before_num_batches_tracked():
    """Version 1 of torch's batch norm did not count batches; without a version the count is 0, as in torch."""
    old = {name: value for name, value in norm(4).state_dict().items() if name != "num_batches_tracked"}
    layer = BNNeuron(4)
    layer.load_state_dict(dict(old))
    assert layer.num_batches_tracked == 0 and torch.equal(layer.running_mean, old["running_mean"])
    with pytest.raises(RuntimeError, match="running_var"):
        layer.load_state_dict({name: value for name, value in old.items() if name != "running_var"})


def test_options_without_state():
    assert list(BNNeuron(4, affine=False).state_dict()) == NAMES[2:]
    assert list(BNNeuron(4, track_running_stats=False).state_dict()) == NAMES[:2]
    assert BNNeuron(4, False).neuron is None and type(BNNeuron(4).neuron) is neuron.IFNode
    node = neuron.LIFNode()
    assert BNNeuron(4, node).neuron is node


def test_copies(device):
    """deepcopy and pickle after a call, which leaves a potential behind: the same results, and nothing shared."""
    layer = BNNeuron(4, neuron.ParametricLIFNode(), "ADD").to(device)
    z, shortcut = (current((3, 2, 4, 3, 3), device=device, seed=s) for s in range(2))
    layer(z, shortcut)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.neuron.v, layer.neuron.v)
        before = layer.running_mean.clone()
        out = other(z, shortcut)
        assert torch.equal(layer.running_mean, before)
        assert torch.equal(out, copy.deepcopy(layer)(z, shortcut))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_conversion(dtype, device):
    """half(), bfloat16() and double() convert all its numbers; forward, backward and tracking then work."""
    layer = BNNeuron(4, neuron.ParametricLIFNode(), "IAND").to(device)
    layer(*(current((3, 2, 4, 3, 3), device=device) for _ in range(2)))
    layer.to(dtype)
    assert all(t.dtype == dtype for name, t in layer.state_dict().items() if name != "num_batches_tracked")
    assert layer.neuron.v.dtype == dtype
    z, shortcut = (current((3, 2, 4, 3, 3), dtype, device, seed=s) for s in range(2))
    before = layer.running_mean.clone()
    out = layer(z.requires_grad_(), shortcut)
    out.sum().backward()
    assert out.dtype == z.grad.dtype == layer.weight.grad.dtype == layer.neuron.w.grad.dtype == dtype
    assert layer.running_mean.dtype == dtype and not torch.equal(layer.running_mean, before)


def test_repr():
    before = repr(BNNeuron(4, neuron.IFNode(), "ADD", connect_before=True))
    assert before.startswith(f"BNNeuron(\n  {nn.BatchNorm2d(4).extra_repr()}, connect_f='ADD', connect_before=True\n")
    assert "(neuron): IFNode(v_threshold=1.0" in before
    assert "connect_f=None\n" in repr(BNNeuron(4))


def test_another_connection(device):
    """The next call uses a connection that is assigned; one that does not exist is an error, and nothing changes."""
    layer = BNNeuron(4, connect_f="ADD").to(device).eval()
    z, shortcut = (current((3, 2, 4, 3, 3), device=device, seed=s) for s in range(2))
    for folded in (layer, layer.without_norm()):
        spikes = folded(z, torch.zeros_like(z))
        folded.connect_before = True
        with pytest.raises(ValueError, match="connect_f must be 'ADD', got 'AND'"):
            folded.connect_f = "AND"
        assert (folded.connect_f, folded.connect_before) == ("ADD", True)
        assert folded(z, shortcut).unique().tolist() == [0, 1]
        folded.connect_before = False
        folded.connect_f = "AND"
        assert torch.equal(folded(z, shortcut), spikes * shortcut)
        folded.connect_f = "ADD"


def used(monkeypatch):
    """A list that records for each call whether the op ran."""
    calls = []

    def counted(run):
        return lambda *a, **kw: calls.append(True) or run(*a, **kw)

    for name in ("bn_neuron", "bn_neuron_train"):
        monkeypatch.setattr(native, name, counted(getattr(native, name)))
    return calls


class Own(Surrogate):
    """ATan's formula in a class without a compiled form."""

    def gradient(self, x):
        return ATan(2.0).gradient(x)


class OwnNode(neuron.IFNode):
    def forward(self, x):
        return 1 - super().forward(x)


def hooked(module, seen):
    module.register_forward_hook(lambda m, inputs, output: seen.append(output.detach()))
    return module


def pre_hooked(module):
    module.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 2,))
    return module


def backward_hooked(module):
    module.register_full_backward_hook(lambda m, grads, _: tuple(2 * g for g in grads))
    return module


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def replaced(module):
    """Replaces ``forward`` on the object, as profilers and quantizers do."""
    before = module.forward
    module.forward = lambda x: 2 * before(x)
    return module


def parametrized(module):
    nn.utils.parametrize.register_parametrization(module, "weight", Doubled())
    return module


#: pairs of norm and node for which the modules must run
FALLBACKS = {
    "keeps state": lambda: (norm(4), neuron.IFNode(keep_state=True)),
    "single-step": lambda: (norm(4), neuron.IFNode(step_mode="s")),
    "store_v_seq": lambda: (norm(4), neuron.LIFNode(store_v_seq=True)),
    "own surrogate": lambda: (norm(4), neuron.IFNode(surrogate_function=Own())),
    "backend torch": lambda: (norm(4), neuron.LIFNode(backend="torch")),
    "own node": lambda: (norm(4), OwnNode()),
    "no node of ours": lambda: (norm(4), nn.Sigmoid()),
    "hook on the norm": lambda: (hooked(norm(4), []), neuron.IFNode()),
    "hook before the norm": lambda: (pre_hooked(norm(4)), neuron.IFNode()),
    "backward hook on the norm": lambda: (backward_hooked(norm(4)), neuron.IFNode()),
    "hook on the node": lambda: (norm(4), hooked(neuron.IFNode(), [])),
    "forward of the norm replaced": lambda: (replaced(norm(4)), neuron.IFNode()),
    "forward of the node replaced": lambda: (norm(4), replaced(neuron.IFNode())),
    "another norm": lambda: (nn.GroupNorm(2, 4), neuron.IFNode()),
    "parametrized": lambda: (parametrized(norm(4)), neuron.IFNode()),
}


@pytest.mark.filterwarnings("ignore::sewsnn.BackendWarning")
@pytest.mark.parametrize("name", FALLBACKS)
def test_modules_run_where_the_op_cannot(name, monkeypatch, device):
    """Two calls give the same as the modules: values, potentials, gradients, running statistics."""
    calls = used(monkeypatch)
    results = []
    for by_hand in (False, True):
        bn, node = (m.to(device) for m in FALLBACKS[name]())
        seen = []
        for seed in range(2):
            z = current((3, 2, 4, 3, 3), device=device, seed=seed).requires_grad_()
            shortcut = current(z.shape, device=device, seed=9)
            if by_hand:
                y = bn(z.flatten(0, 1)).unflatten(0, (3, 2))
                single = getattr(node, "step_mode", "m") == "s"
                out = (torch.stack([node(step) for step in y]) if single else node(y)) * shortcut
            else:
                out = bn_neuron(z, bn, node, shortcut, connect_f="AND").out
            (grad,) = torch.autograd.grad(out.square().sum(), z, retain_graph=True)
            seen += [out.detach(), grad, *(getattr(node, v, None) for v in ("v", "v_seq"))]
        results.append([*seen, *bn.buffers()])
    assert not calls
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_a_plan_says_what_the_op_takes_and_changes_nothing(device):
    z, bn, node = current((3, 2, 4, 3, 4), device=device), norm(4, device=device), neuron.LIFNode(tau=3.0)
    before = copy.deepcopy(bn.state_dict())
    planned = plan(z, bn, node, connection_of("ADD", True), return_skip=True, pack_spikes=True)
    assert (planned.norm, planned.neuron, planned.connect, planned.T) == (bn, node, native.ADD_BEFORE, 0)
    assert (
        planned.store_v
        and planned.pack
        and planned.return_skip
        and planned.spec.tau == 3.0
        and planned.spec.kind == "LIF"
    )
    assert planned.one_call[0] is bn.weight and plan(z, bn.eval(), node).one_call is None
    assert not plan(z, bn, node, connection_of("ADD"), pack_spikes=True).pack  # sums of spikes are no bits
    assert node.v is None and all(torch.equal(value, before[name]) for name, value in bn.state_dict().items())
    with pytest.raises(AttributeError):
        planned.T = 3
    for T, store_v in ((16, False), (17, False), (16, True)):
        node.store_v = store_v
        assert (plan(z[0], bn, node, T=T, pooled=True) is not None) == ((T, store_v) == (16, False))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_norm(monkeypatch):
    """The first call runs the modules and sets the number of channels; later calls treat it like any norm."""
    calls, bn = used(monkeypatch), nn.LazyBatchNorm2d()
    for expected in (0, 1):
        bn_neuron(current((3, 2, 4, 3, 3)), bn, neuron.IFNode())
        assert type(bn) is nn.BatchNorm2d and bn.num_features == 4 and len(calls) == expected
    assert bn.num_batches_tracked == 2


@pytest.mark.parametrize("settings", [{}, {"v_reset": None}, {"store_v": False}], ids=str)
def test_the_op_runs_where_it_can(settings, monkeypatch, device):
    """The op stores the potential like the neuron: in v if the neuron stores it, and never in v_seq."""
    calls = used(monkeypatch)
    z = current((5, 2, 4, 3, 3), torch.float64, device)
    for bn in (norm(4, torch.float64).to(device), None, nn.Identity()):
        nodes = [neuron.LIFNode(**settings) for _ in range(2)]
        for node, fused in zip(nodes, (True, False), strict=True):
            output = bn_neuron(z, copy.deepcopy(bn), node, fused=fused)
            assert output.v is node.v and output.bits is None and output.skip is None and node.v_seq is None
        if settings.get("store_v", True):
            torch.testing.assert_close(nodes[0].v, nodes[1].v, rtol=1e-12, atol=1e-12)
            assert not nodes[0].v.requires_grad
        else:
            assert nodes[0].v is None
    assert len(calls) == 3


def test_v_seq_is_not_left_over(device):
    """A node that no longer stores v has v = None, not the v of an earlier call."""
    z, bn, node = current((5, 2, 4, 3, 3), device=device), norm(4, device=device), neuron.IFNode(store_v_seq=True)
    bn_neuron(z, bn, node)
    assert node.v_seq is not None
    node.store_v_seq = False
    output = bn_neuron(z, bn, node)
    assert node.v_seq is None and node.v is output.v


def test_layer_equals_the_function(device):
    bn = norm(4, torch.float64, device)
    z, shortcut = (current((3, 2, 4, 3, 3), torch.float64, device, seed=s) for s in range(2))
    layer = layer_like(bn, neuron.LIFNode(), device, connect_f="IAND")
    out = layer(z, shortcut)
    assert torch.equal(out, bn_neuron(z, bn, neuron.LIFNode(), shortcut, connect_f="IAND").out)
    assert torch.equal(layer.running_var, bn.running_var)
    still = layer(z[0], shortcut, T=3)
    assert torch.equal(still, bn_neuron(z[0], bn, neuron.LIFNode(), shortcut, connect_f="IAND", T=3).out)


@pytest.mark.parametrize("T", [None, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_layer_by_modules(settings, training, T, device):
    """For a node that cannot be fused, torch computes batch norm with the layer's own numbers."""
    results = []
    for node in (neuron.LIFNode(), neuron.LIFNode(backend="torch")):
        layer = layer_like(norm(4, torch.float64, device, training, **settings), node, device, **settings)
        for seed in range(2):
            z = current((2, 4, 3, 3) if T else (3, 2, 4, 3, 3), torch.float64, device, seed=seed).requires_grad_()
            assert (plan(z, layer, layer.neuron, T=T) is None) == (node.backend == "torch")
            out = layer(z, T=T)
            (out * current(out.shape, out.dtype, device, seed=5)).sum().backward()
        results.append([out.detach(), z.grad, layer.neuron.v, *layer.buffers(), *(p.grad for p in layer.parameters())])
    tolerance = 1e4 * EPS[torch.float64]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_hooks_on_the_layer_itself(monkeypatch):
    """Hooks of the layer itself run around the op, as for any module."""
    calls, seen = used(monkeypatch), []
    layer = hooked(BNNeuron(4), seen)
    out = layer(current((3, 2, 4, 3, 3)))
    assert calls and torch.equal(seen[0], out)


def test_firing_rates_of_fused_layers(device):
    """Hooks on the neurons see the spikes, before the connection."""
    layer = BNNeuron(4, connect_f="ADD").to(device)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, z):
            return self.layer(z, torch.ones_like(z))

    z = current((3, 2, 4, 3, 3), device=device)
    (rate,) = firing_rates(Net(), [z]).values()
    assert 0 < rate < 1 and rate == pytest.approx(float(layer.eval()(z, torch.zeros_like(z)).mean().detach()))


def test_says_when_it_is_slow():
    load._announced.clear()
    layer = BNNeuron(4, neuron.IFNode(surrogate_function=Own(2.5)))
    with pytest.warns(BackendWarning, match="slower torch backend: the surrogate Own"):
        layer(current((3, 2, 4, 3, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BNNeuron(4)(current((3, 2, 4, 3, 3)))


def test_a_layer_without_a_neuron(device):
    """``neuron=False``: batch norm and the connection alone."""
    layer = BNNeuron(4, neuron=False, connect_f="ADD").to(device)
    z, shortcut = current((3, 2, 4, 3, 3), device=device), current((3, 2, 4, 3, 3), device=device, seed=1)
    expected = nn.BatchNorm2d(4).to(device)(z.flatten(0, 1)).unflatten(0, (3, 2)) + shortcut
    torch.testing.assert_close(layer(z, shortcut), expected)
