"""The report of a conversion, and the neurons that are not converted."""

import copy

import pytest
import torch
from sj_cases import V2, current
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sewsnn.convert import Left, Report, from_spikingjelly


class Own(neuron.LIFNode):
    """A class that a user derives from a node."""

    def neuronal_charge(self, x):
        self.v = 2 * x


class MultiStepLIFNode(nn.Module):
    """A node like those of SpikingJelly's old clock_driven package."""

    v = 0.0


def test_replaced_and_left():
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3),
        layer.BatchNorm2d(3),
        neuron.LIFNode(tau=3.0, v_threshold=0.5),
        layer.Dropout(0.5),
        Own(),
        neuron.EIFNode(),
        MultiStepLIFNode(),
        neuron.ParametricLIFNode(),
        neuron.NonSpikingLIFNode() if V2 else neuron.IzhikevichNode(),
    )
    report = from_spikingjelly(net)
    assert isinstance(report, Report) and report.model is net
    assert len(report) == 2 and report.fused == 1
    first, second = report.replaced
    assert (first.name, first.kind, first.fused_with) == ("2", "LIFNode", "1")
    assert "v_threshold=0.5" in first.settings and "tau=3.0" in first.settings and "Sigmoid" in first.settings
    assert (second.name, second.kind, second.fused_with) == ("7", "ParametricLIFNode", "")
    reasons = {entry.name: entry.reason for entry in report.left}
    assert (
        "derives from" in reasons["4"]
        and "no such neuron" in reasons["5"]
        and "no such neuron" in reasons["8"]
        and "old SpikingJelly" in reasons["6"]
    )
    assert type(net[4]) is Own
    text = str(report)
    assert "neurons replaced: 2, in one op with batch norm: 1" in text and "with 1" in text
    for name, reason in reasons.items():
        assert any(line.split()[0] == name and reason in line for line in text.splitlines())


def test_twice():
    net = nn.Sequential(layer.BatchNorm2d(3), neuron.IFNode())
    from_spikingjelly(net)
    kinds = [type(module) for module in net.modules()]
    report = from_spikingjelly(net)
    assert len(report) == 0 and report.converted_before == ["1"] and not report.left
    assert "earlier call converted" in str(report)
    assert [type(module) for module in net.modules()] == kinds


def test_twice_and_more():
    """A second call converts modules that were added later."""
    net = nn.Sequential(layer.BatchNorm2d(3), neuron.IFNode())
    from_spikingjelly(net)
    net.append(layer.BatchNorm2d(3)).append(neuron.IFNode())
    report = from_spikingjelly(net)
    assert [(entry.name, entry.fused_with) for entry in report.replaced] == [("3", "2")]


def test_fuse_later_or_not_any_more():
    """The last value of ``fuse`` counts, whatever an earlier call set."""
    net = nn.Sequential(layer.BatchNorm2d(3), neuron.IFNode())
    from_spikingjelly(net, fuse=False)
    assert type(net[0]) is layer.BatchNorm2d
    from_spikingjelly(net)
    assert type(net[0]) is not layer.BatchNorm2d
    from_spikingjelly(net, fuse=False)
    assert type(net[0]) is layer.BatchNorm2d


def test_nothing_to_do():
    report = from_spikingjelly(nn.Linear(2, 2))
    assert len(report) == 0 and not report.left and "no neurons of spikingjelly.activation_based" in str(report)


def test_the_model_itself_is_a_node():
    node = neuron.IFNode(step_mode="m")
    report = from_spikingjelly(node)
    assert [entry.name for entry in report.replaced] == [""] and "(the model)" in str(report)


@pytest.mark.parametrize(
    "node, reason",
    [
        (neuron.IFNode(surrogate_function=surrogate.Sigmoid(spiking=False)), "spiking is False"),
        (neuron.IFNode(surrogate_function=surrogate.S2NN()), "no surrogate like"),
        (neuron.IFNode(surrogate_function=torch.sigmoid), "no surrogate like"),
        (neuron.IFNode(surrogate_function=surrogate.ATan(-1.0)), "alpha is -1.0"),
        (neuron.IFNode(v_threshold=float("inf")), "v_threshold is inf"),  # whoever reads v may let it never fire
    ],
)
def test_left_with_the_reason(node, reason):
    report = from_spikingjelly(node)
    assert not report.replaced and len(report.left) == 1 and reason in report.left[0].reason
    assert type(node) is neuron.IFNode


def test_settings_that_are_no_numbers_are_left():
    for name, value in (
        ("v_threshold", torch.ones(3)),
        ("v_reset", torch.zeros(3)),
        ("tau", nn.Parameter(torch.ones(1))),
    ):
        node = neuron.LIFNode()
        if name == "tau":
            del node.tau
        setattr(node, name, value)
        report = from_spikingjelly(node)
        assert [type(entry) for entry in report.left] == [Left] and name in report.left[0].reason


def test_patched_methods_are_left():
    node = neuron.LIFNode()
    node.single_step_forward = lambda x: None
    assert "single_step_forward" in from_spikingjelly(node).left[0].reason


@pytest.mark.skipif(not V2, reason="new in 2.0")
def test_an_explicit_precision_is_left():
    node = neuron.LIFNode(step_mode="m")
    node._neuron_precision = (torch.float16, "fp32", "fp32")
    assert "precision" in from_spikingjelly(node).left[0].reason


@pytest.mark.parametrize("wrap", [lambda net: nn.ModuleDict({"module": net}), torch.compile])
def test_inside_a_wrapper(wrap):
    net = nn.Sequential(layer.Linear(4, 4, step_mode="m"), neuron.IFNode(step_mode="m"))
    expected = copy.deepcopy(net)(current(3, 2, 4))
    report = from_spikingjelly(wrap(net))
    assert len(report) == 1 and torch.equal(net(current(3, 2, 4)), expected)
    functional.reset_net(net)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="model must be a module, got dict"):
        from_spikingjelly({})
