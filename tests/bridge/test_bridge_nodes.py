"""Single nodes: the conversion keeps spikes and potentials bit for bit, and the gradients."""

import numpy as np
import pytest
import torch
from sj_cases import NODES, SURROGATES, TOLERANCE, V2, converted, current, gradients
from spikingjelly.activation_based import neuron, surrogate

import sewsnn

every_node = pytest.mark.parametrize("kind", NODES)


def observe(node, x, chunks):
    """Returns spikes, v, v_seq and the gradients of x and w."""
    x = x.clone().requires_grad_()
    s = torch.stack([node(t) for t in x]) if node.step_mode == "s" else torch.cat([node(c) for c in x.chunk(chunks)])
    seen = [s, node.v] + ([node.v_seq] if node.store_v_seq and getattr(node, "v_seq", None) is not None else [])
    loss = sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in seen)
    found = gradients(loss, [x, *node.parameters()]) if loss.requires_grad else []
    return seen, found


def compare(node, x, chunks=2):
    after, report = converted(node)
    assert len(report) == 1 and not report.left
    expected, expected_gradients = observe(node, x, chunks)
    actual, actual_gradients = observe(after, x, chunks)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert 0.1 < expected[0].mean() < 0.9
    if not V2 and not node.training and not isinstance(node, neuron.ParametricLIFNode):
        return  # 0.0.0.0.14 has no surrogate in evaluation
    for a, b in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[x.dtype])


@every_node
@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.25])
def test_same_as_before(kind, name, detach_reset, v_reset):
    settings = {"v_reset": v_reset, "detach_reset": detach_reset, "surrogate_function": getattr(surrogate, name)()}
    for step_mode in "ms":
        for decay_input in [{}] if kind == "IF" else [{"decay_input": True}, {"decay_input": False}]:
            node = NODES[kind](**settings, **decay_input, step_mode=step_mode)
            compare(node, current(6, 3, 40))
            node.reset()
            compare(node.double(), current(6, 3, 40, dtype=torch.float64))


@every_node
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_v_seq(kind, training, step_mode):
    compare(NODES[kind](store_v_seq=True, step_mode=step_mode).train(training), current(6, 2, 30))


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("alpha", [0.7, 3.0])
def test_the_surrogates_parameter_means_the_same(name, alpha):
    compare(neuron.IFNode(surrogate_function=getattr(surrogate, name)(alpha), step_mode="m"), current(4, 50))


@pytest.mark.parametrize("tau", [2.5, 5.0, 10.0])
@pytest.mark.parametrize("kind", ["LIF", "PLIF"])
@pytest.mark.parametrize("decay_input", [True, False])
def test_other_tau(kind, tau, decay_input):
    """Dividing by tau and multiplying by 1 / tau round differently: in double, potentials agree up to rounding."""
    node = NODES[kind](tau, decay_input, step_mode="m").double()
    after, _ = converted(node)
    x = current(6, 3, 200, dtype=torch.float64)
    expected, expected_gradients = observe(node, x, 2)
    actual, actual_gradients = observe(after, x, 2)
    for a, b in zip([*actual, *actual_gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[torch.float64])


@every_node
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_dtype_of_spikes(kind, dtype):
    """Spikes keep the dtype of the input, and the state is in float32."""
    after, _ = converted(NODES[kind](step_mode="m"))
    x = current(4, 3, 20)
    s = after(x.to(dtype))
    assert s.dtype == dtype and after.v.dtype == torch.float32
    s = after(x.to(dtype))
    assert s.dtype == dtype
    wide, _ = converted(NODES[kind](step_mode="m"))
    wide(x.to(dtype).float())
    assert torch.equal(s.float(), wide(x.to(dtype).float()))


@every_node
def test_settings_are_read_at_every_call(kind):
    node = NODES[kind](step_mode="m")
    after, _ = converted(node)
    x = current(4, 2, 60)
    for change in (
        {"v_threshold": 0.4},
        {"v_reset": None},
        {"v_reset": -0.1},
        {"detach_reset": True},
        {"surrogate_function": surrogate.ATan(3.0)},
        {"surrogate_function": surrogate.Sigmoid(2.0)},
        {"tau": 4.0, "decay_input": False} if kind == "LIF" else {},
    ):
        for module in (node, after):
            module.reset()
            for name, value in change.items():
                setattr(module, name, value)
        (s, v), expected = observe(node, x, 1)
        (s_after, v_after), actual = observe(after, x, 1)
        assert torch.equal(s, s_after) and torch.equal(v, v_after)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE[torch.float32])
    after.surrogate_function.alpha = 9.0
    assert after.spec().surrogate == sewsnn.surrogate.Sigmoid(9.0)


def replaced(function, method):
    """A method that was replaced on the object and shrinks gradients."""
    before = getattr(function, method)
    setattr(function, method, lambda x, *args: before(x * 0.5, *args))
    return function


@every_node
def test_what_sewsnn_cannot_do_goes_spikingjellys_way(kind):
    """Changes after the conversion: a threshold becomes a tensor, spiking=False, an unknown surrogate."""
    node = NODES[kind](step_mode="m")
    after, _ = converted(node)
    x = current(3, 2, 60)
    for name, value in (
        ("v_threshold", torch.linspace(0.5, 1.5, 60)),
        ("surrogate_function", surrogate.Sigmoid(spiking=False)),
        ("surrogate_function", surrogate.S2NN()),
        ("surrogate_function", replaced(surrogate.ATan(), "forward")),
        ("surrogate_function", replaced(surrogate.ATan(), "spiking_function")),
    ):
        if name == "v_threshold" and V2:
            continue  # 2.0 does not accept such a threshold
        for module in (node, after):
            module.reset()
            module.v_threshold = 1.0
            setattr(module, name, value)
        (s, v), expected = observe(node, x, 2)
        (s_after, v_after), actual = observe(after, x, 2)
        assert torch.equal(s, s_after) and torch.equal(v, v_after)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)  # TorchScript's second run may round differently from its first


def test_numbers_of_other_types():
    node = neuron.IFNode(surrogate_function=surrogate.ATan(np.float32(3.0)), step_mode="m")
    node.v_threshold = 1
    node.v_reset = np.float64(-0.5)
    compare(node, current(6, 2, 30))


def test_inputs_sewsnn_does_not_take():
    """SpikingJelly's own code computes integer inputs, such as event counts."""
    node = neuron.IFNode(step_mode="m")
    after, _ = converted(node)
    x = torch.arange(12).view(3, 4) % 2
    assert torch.equal(node(x), after(x)) and node(x).dtype == after(x).dtype


@every_node
def test_state_of_inference_mode_is_trained_on(kind):
    node = NODES[kind](step_mode="m")
    after, _ = converted(node)
    found = []
    for module in (node, after):
        with torch.inference_mode():
            module(current(2, 30))
        x = current(3, 30).requires_grad_()
        found.append(gradients(module(x).sum(), x))
    torch.testing.assert_close(*found)
