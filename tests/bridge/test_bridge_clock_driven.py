"""spikingjelly.clock_driven, the interface of the versions up to 0.0.0.0.12 (0.0.0.0.14 still has it)."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sj_cases import TOLERANCE, V2, assert_same_step, current
from torch import nn

from sewsnn.convert import from_spikingjelly

if V2:
    pytest.skip("2.0 has no clock_driven", allow_module_level=True)

import spikingjelly
from spikingjelly.clock_driven import functional, layer, neuron, surrogate

SINGLE = {"IF": neuron.IFNode, "LIF": neuron.LIFNode, "PLIF": neuron.ParametricLIFNode, "QIF": neuron.QIFNode}
MULTI = {"IF": neuron.MultiStepIFNode, "LIF": neuron.MultiStepLIFNode, "PLIF": neuron.MultiStepParametricLIFNode}
SURROGATES = ("ATan", "Erf", "PiecewiseExp", "PiecewiseQuadratic", "Sigmoid", "SoftSign")


def converted(model, **options):
    model = copy.deepcopy(model)
    return model, from_spikingjelly(model, **options)


def observed(node, x, calls=2):
    """Spikes, states and v_seq of some calls, and the gradient of x."""
    x = x.clone().requires_grad_()
    multi = type(node).__name__.startswith("MultiStep")
    seen = [torch.cat([node(c) for c in x.chunk(calls)]) if multi else torch.stack([node(t) for t in x])]
    seen += [node.v] + ([node.v_seq] if multi else [])
    loss = sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in seen)
    (grad,) = torch.autograd.grad(loss, [x])
    return [t.detach() for t in seen], grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("kind", [*(f"single {kind}" for kind in SINGLE), *(f"multi {kind}" for kind in MULTI)])
def test_nodes(kind, v_reset, dtype):
    """Spikes, v and v_seq have the same bits; gradients, also of v and v_seq, are the same up to rounding."""
    steps, name = kind.split()
    if (name, v_reset) == ("QIF", None):
        pytest.skip("QIF has a hard reset")
    node = (SINGLE if steps == "single" else MULTI)[name](**({} if name == "QIF" else {"v_reset": v_reset})).to(dtype)
    after, report = converted(node)
    assert len(report) == 1 and not report.left and isinstance(after, type(node))
    x = current(6, 3, 20, dtype=dtype)
    for _ in range(2):
        (expected, wanted), (actual, found) = observed(node, x), observed(after, x)
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
        torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])
        functional.reset_net(node), functional.reset_net(after)
        assert after.v == node.v and getattr(after, "v_seq", None) is None


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name):
    node = neuron.MultiStepLIFNode(surrogate_function=getattr(surrogate, name)()).double()
    after, _ = converted(node)
    x = current(4, 3, 20, dtype=torch.float64)
    (_, wanted), (_, found) = observed(node, x), observed(after, x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_defaults_are_kept():
    """Their defaults are Sigmoid with alpha 4 and a reset that is not detached."""
    _, report = converted(nn.Sequential(neuron.MultiStepLIFNode()))
    settings = report.replaced[0].settings
    assert "Sigmoid(alpha=4.0" in settings and "detach_reset=False" in settings and "tau=2.0" in settings


def test_left_with_the_reason():
    class Own(neuron.MultiStepLIFNode):
        def neuronal_charge(self, x):
            self.v = 2 * x

    class Fixed(neuron.MultiStepLIFNode):
        def __init__(self):
            super().__init__(tau=2.0, detach_reset=True)

    net = nn.Sequential(neuron.MultiStepEIFNode(), neuron.LIAFNode(torch.relu, False), Own(), Fixed())
    report = from_spikingjelly(net)
    assert [entry.name for entry in report.replaced] == ["3"]
    assert [entry.reason.split(",")[0] for entry in report.left] == [
        "sewsnn has no such neuron",
        "its class derives from LIFNode and defines LIAFNode.forward",
        "its class derives from MultiStepLIFNode and defines Own.neuronal_charge",
    ]


def old_network(node=neuron.MultiStepLIFNode):
    torch.manual_seed(0)
    return nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),
        node(detach_reset=True),
        layer.SeqToANNContainer(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
        node(),
        layer.MultiStepDropout(0.5),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(24, 3)),
        node(),
    )


def training_step(model, x):
    x = x.clone().requires_grad_()
    torch.manual_seed(0)  # for dropout
    y = model(x)
    parameters = dict(model.named_parameters())
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    found = torch.autograd.grad((y * weights).sum(), [x, *parameters.values()])
    functional.reset_net(model)
    return {"out": y.detach(), **dict(model.named_buffers())}, dict(zip(["x", *parameters], found, strict=True))


@pytest.mark.parametrize("kind", MULTI)
def test_network(kind):
    net = old_network(MULTI[kind]).double()
    after, report = converted(net)
    assert [entry.fused_with for entry in report.replaced] == ["0.1", "2.2", ""]
    x = current(4, 3, 2, 8, 8, dtype=torch.float64)
    for _ in range(3):
        assert_same_step(training_step(after, x), training_step(net, x), 1e-9)
    assert report.refresh().fused == 2 and list(after.state_dict()) == list(net.state_dict())
    expected = net.eval()(x)
    after.eval()
    for model in (after, copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
        functional.reset_net(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def test_v_seq_of_a_joined_neuron():
    """It is computed when it is read, without a graph, as v is; a hook on the neuron sees it as before."""
    net = old_network().double()
    net[4].p = 0.0
    after, _ = converted(net)
    x = current(4, 3, 2, 8, 8, dtype=torch.float64)
    net(x), after(x)
    for name in ("1", "3", "6"):
        one, other = after.get_submodule(name), net.get_submodule(name)
        torch.testing.assert_close(one.v_seq.detach(), other.v_seq.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.v.detach(), other.v.detach(), rtol=1e-9, atol=1e-9)
        assert [name for name, _ in one.named_memories()] == [name for name, _ in other.named_memories()]
    with pytest.raises(RuntimeError, match=r"v_seq.*fuse=False"):
        after[1].v_seq.sum().backward()
    functional.reset_net(net), functional.reset_net(after)
    seen = []
    for model in (net, after):
        handle = model[1].register_forward_hook(lambda module, _, s: seen.append((s, module.v_seq)))
        model(x)
        handle.remove()
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_truncated_backpropagation():
    node = neuron.MultiStepLIFNode(detach_reset=True).double()
    after, _ = converted(node)
    x = current(4, 3, 20, dtype=torch.float64)
    for module in (node, after):
        module(x.clone().requires_grad_())
        module.detach()
        assert not module.v.requires_grad and not module.v_seq.requires_grad
    assert torch.equal(node(x), after(x)) and torch.equal(node.v_seq, after.v_seq)


def test_without_activation_based(tmp_path):
    """0.0.0.0.12 and earlier have only clock_driven."""
    (tmp_path / "spikingjelly").mkdir()
    for path in Path(spikingjelly.__file__).parent.iterdir():
        if path.name not in ("activation_based", "__pycache__"):
            (tmp_path / "spikingjelly" / path.name).symlink_to(path)
    code = """
import torch, sewsnn
from spikingjelly.clock_driven import neuron, functional
from torch import nn
try:
    neuron.MultiStepLIFNode(backend="cupy")
except AssertionError:
    print("refused")
with sewsnn.convert.install() as installed:
    net = nn.Sequential(nn.BatchNorm1d(3), neuron.MultiStepLIFNode(backend="cupy"))
    assert "MultiStepLIFNode.__init__" in str(installed) and "torch" in str(installed)
report = sewsnn.convert.from_spikingjelly(net)
net(torch.randn(4, 3, 5)).sum().backward()
print(report.refresh().fused, len(report))
try:
    neuron.MultiStepLIFNode(2.0, True, 1.0, 0.0, neuron.surrogate.Sigmoid(), False, "cupy")
except AssertionError:
    print("refused again")
"""
    path = os.pathsep.join([str(tmp_path), *os.environ["PYTHONPATH"].split(os.pathsep)[1:]])
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["refused", "1 1", "refused again"]
