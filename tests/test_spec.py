"""NeuronSpec: what is checked, its forms for the ops, and how nodes make it."""

import math

import pytest
import torch
from neuron_cases import NODES, SPECS, every_node, every_spec, make

from sewsnn import neuron, surrogate
from sewsnn.ops.options import Options, from_numbers
from sewsnn.ops.registry import KINDS
from sewsnn.ops.spec import NOTHING, NeuronSpec, numbers_of

ATAN = surrogate.ATan(2.0)


@every_spec
def test_both_forms_say_the_same(name):
    spec = SPECS[name]
    options = Options(1e-5, 2, 7, spec)
    arguments, tail = from_numbers([float(number) for number in options.numbers])
    assert arguments == options.arguments == (1e-5, 2, 7, *spec.arguments) and tail == options.tail
    assert spec.arguments[0] == KINDS[spec.kind].number and tail == ([*spec.extra],)
    assert Options(1e-5, 2, 7, None).numbers == (1e-5, 2, 7, *numbers_of(NOTHING))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"kind": "lif"}, ValueError, "unknown neuron 'lif'"),
        ({"surrogate": 2.0}, TypeError, "surrogate_function must be one of sewsnn.surrogate"),
        ({"tau": 0.5}, ValueError, "tau must be at least 1, got 0.5"),
        ({"tau": math.nan}, ValueError, "tau must be finite"),
        ({"v_threshold": math.inf}, ValueError, "v_threshold must be finite"),
        ({"v_threshold": torch.tensor(1.0)}, TypeError, "v_threshold must be a number, got Tensor"),
        ({"v_reset": "0"}, TypeError, "v_reset must be a number"),
        ({"extra": (1.0,)}, ValueError, r"LIF has the numbers \(\), got \(1.0,\)"),
        ({"kind": "QIF", "extra": (1.0, math.nan, 0.0)}, ValueError, "a0 must be finite"),
    ],
    ids=str,
)
def test_wrong_values_are_named(change, error, message):
    with pytest.raises(error, match=message):
        NeuronSpec(**{"kind": "LIF", "surrogate": ATAN, **change})


def test_numbers_that_are_not_used_are_not_checked():
    assert NeuronSpec("IF", ATAN, tau=0.5).tau == 2.0


def test_what_the_library_cannot_compute():
    counts = surrogate.MultiLevelSpikeCount(2)

    class Own(surrogate.MultiLevelSpikeCount):
        def gradient(self, x):
            return torch.ones_like(x)

    integer = {"v_reset": None, "extra": (2, 0, 2, 1)}
    assert NeuronSpec("ILIF", counts, **integer).missing is None
    for wrong in (NeuronSpec("ILIF", Own(2), **integer), NeuronSpec("IF", counts), NeuronSpec("ILIF", ATAN, **integer)):
        assert "has no compiled form" in wrong.missing and wrong.arguments is None
    node = neuron.ILIFNode(surrogate_function=Own(2), backend="native")
    with pytest.raises(Exception, match="Own has no compiled form"):
        node(torch.rand(3, 4))


@every_node
def test_a_node_keeps_its_spec_until_a_setting_changes(name):
    node = make(name)
    spec = node.spec()
    assert node.spec() is spec and spec.kind == node.kind
    node.v = torch.zeros(3)
    assert node.spec() is spec
    for setting in NODES[name][2] or {"v_threshold": 0.7}:
        if setting != "v_reset":
            value = getattr(node, setting)
            setattr(node, setting, not value if isinstance(value, bool) else value + 1)
            assert node.spec() != spec, setting
            spec = node.spec()


@pytest.mark.parametrize("mixin", [False, True])
def test_a_setting_that_is_a_property_is_read_every_time(mixin):
    class Rising(object if mixin else neuron.IFNode):
        calls = 0

        @property
        def v_threshold(self):
            return 0.5 + self.calls

        @v_threshold.setter
        def v_threshold(self, value):
            pass

    class Mixed(Rising, neuron.IFNode):
        pass

    node = Mixed() if mixin else Rising()
    x = torch.full((1, 1), 0.7)
    assert node(x) == 1
    node.calls = 1
    assert node(x) == 0


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: neuron.CUBALIFNode(c_decay="no"), TypeError, "c_decay must be a number"),
        (lambda: neuron.AdaptiveLIFNode(tau_w=0), ValueError, "tau_w must be above 0, got 0"),
        (lambda: neuron.AdaptiveLIFNode(a=math.nan), ValueError, "a must be finite"),
        (lambda: neuron.AdaptiveLIFNode(tau=0.5), ValueError, "tau must be at least 1"),
        (lambda: neuron.QIFNode(a0=None), TypeError, "a0 must be a number"),
        (lambda: neuron.ILIFNode(v_threshold=-1.0), ValueError, "v_threshold must be above 0"),
        (
            lambda: neuron.ILIFNode(surrogate_function=ATAN),
            TypeError,
            "must be a sewsnn.surrogate.MultiLevelSpikeCount",
        ),
        (lambda: setattr(neuron.ILIFNode(), "v_reset", 0.0), ValueError, "v_reset must be None"),
        (lambda: neuron.ILIFNode(normalize=2), TypeError, "normalize must be True or False"),
        (lambda: neuron.IFNode(surrogate_function=surrogate.MultiLevelSpikeCount()), TypeError, "is for ILIFNode"),
        (lambda: surrogate.MultiLevelSpikeCount(0), ValueError, "max_spike_count must be at least 1"),
        (lambda: surrogate.MultiLevelSpikeCount(2**22 + 1), ValueError, "max_spike_count must be .* at most 4194304"),
        (lambda: surrogate.MultiLevelSpikeCount(2.0), TypeError, "max_spike_count must be an int"),
        (lambda: surrogate.MultiLevelSpikeCount(2, (1, 0)), ValueError, "grad_window must be .* lower <= upper"),
        (
            lambda: setattr(surrogate.MultiLevelSpikeCount(2), "max_spike_count", 3),
            AttributeError,
            "max_spike_count of .* cannot be changed",
        ),
    ],
    ids=range(15),
)
def test_errors_name_the_setting(call, error, message):
    with pytest.raises(error, match=message):
        call()
