"""QIF, CUBALIF and ILIF nodes: the conversion keeps spikes and states bit for bit, and the gradients."""

import copy
import math

import pytest
import torch
from sj_cases import FURTHER, SURROGATES, TOLERANCE, converted, current, gradients, make
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

import sewsnn

every_node = pytest.mark.parametrize("kind", FURTHER)
with_surrogate = pytest.mark.parametrize("kind", [kind for kind in FURTHER if kind != "ILIF"])
cubalif = pytest.mark.skipif("CUBALIF" not in FURTHER, reason="new in 2.0")
ilif = pytest.mark.skipif("ILIF" not in FURTHER, reason="new in 2.0")


def states(node):
    return [value for name, value in node.named_memories() if name != "v_seq"]


def observe(node, x, chunks=2):
    """Returns spikes, states and v_seq, and the gradient of x."""
    x = x.clone().requires_grad_()
    s = torch.stack([node(t) for t in x]) if node.step_mode == "s" else torch.cat([node(c) for c in x.chunk(chunks)])
    seen = [s, *states(node)] + ([node.v_seq] if getattr(node, "v_seq", None) is not None else [])
    loss = sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in seen)
    return seen, gradients(loss, [x])


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def compare(node, x, chunks=2):
    after, report = converted(node)
    assert len(report) == 1 and not report.left
    (expected, wanted), (actual, found) = observe(node, x, chunks), observe(after, x, chunks)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert 0.05 < (expected[0] > 0).double().mean() < 0.95
    torch.testing.assert_close(found, wanted, **TOLERANCE[x.dtype])


@every_node
@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_same_for_every_number_of_time_steps(kind, step_mode, detach_reset):
    for T in range(1, 21):
        for dtype in (torch.float32, torch.float64):
            node = make(kind, step_mode=step_mode, detach_reset=detach_reset)
            compare(node, current(T, 3, 60, seed=T, dtype=dtype))


@with_surrogate
@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("v_reset", [0.0, None, -0.25])
def test_same_with_every_surrogate_and_reset(kind, name, v_reset):
    for step_mode in "ms":
        for store_v_seq in (False, True):
            settings = {"surrogate_function": getattr(surrogate, name)(), "v_reset": v_reset}
            node = make(kind, step_mode=step_mode, store_v_seq=store_v_seq, **settings)
            compare(node, current(6, 3, 40))


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("QIF", {"tau": 2.5, "v_c": 0.6, "a0": 0.3, "v_rest": -0.05, "v_threshold": 0.7}),
        ("QIF", {"tau": 7.0, "v_c": 0.9, "a0": 2.0, "v_rest": 0.1, "v_threshold": 0.5, "v_reset": None}),
        ("CUBALIF", {"c_decay": 0.9, "v_decay": 0.3, "v_threshold": 1.1}),
        ("CUBALIF", {"c_decay": 0.15, "v_decay": 0.99, "v_threshold": 0.8, "v_reset": None}),
        ("ILIF", {"tau": 4 / 3}),
        ("ILIF", {"tau": 2.7, "v_threshold": 0.6}),
        ("ILIF", {"store_v_seq": True}),
    ],
)
def test_other_settings(kind, settings):
    if kind in FURTHER:
        compare(make(kind, step_mode="m", **settings), current(8, 3, 40))


@ilif
@pytest.mark.parametrize("window", [None, (0.5, 1.5), (-1.0, 6.0), (2, 2)])
@pytest.mark.parametrize("D", [1, 2, 8])
def test_counts_and_their_window(D, window):
    function = surrogate.MultiLevelSpikeCount(D, grad_window=window)
    for step_mode in "ms":
        compare(make("ILIF", step_mode=step_mode, surrogate_function=function), 2 * current(6, 3, 40))


@ilif
def test_the_step_modes_of_ilif_round_alike_here():
    """SpikingJelly's single step computes v - v / tau + x, its multi-step (1 - 1 / tau) v + x, and so does sewsnn."""
    x = current(8, 3, 400)
    seen = {}
    for step_mode in "ms":
        node = neuron.ILIFNode(step_mode=step_mode)
        after, _ = converted(node)
        (_, v), _ = observe(node, x, 1)
        (_, v_after), _ = observe(after, x, 1)
        torch.testing.assert_close(v_after, v, rtol=0, atol=2e-6)
        seen[step_mode] = v, v_after
    assert torch.equal(seen["m"][1], seen["s"][1]) and torch.equal(seen["m"][0], seen["m"][1])
    assert not torch.equal(seen["m"][0], seen["s"][0])


@every_node
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    """Spikes keep the dtype of the input, and the states are in float32."""
    x = current(6, 3, 20).to(dtype)
    for step_mode in "ms":
        after, wide = (converted(make(kind, step_mode=step_mode))[0] for _ in range(2))
        (s, *kept), (found,) = observe(after, x)
        (expected, *wide_kept), (wanted,) = observe(wide, x.float())
        assert s.dtype == found.dtype == dtype and torch.equal(s.float(), expected)
        assert all(one.dtype == torch.float32 and torch.equal(one, v) for one, v in zip(kept, wide_kept, strict=True))
        torch.testing.assert_close(found, wanted.to(dtype), rtol=0.02, atol=0.01)


@every_node
def test_settings_are_read_at_every_call(kind):
    node = make(kind, step_mode="m")
    after, _ = converted(node)
    x = current(6, 2, 60)
    changes = {
        "QIF": ({"v_c": 0.5}, {"a0": 0.5}, {"v_rest": 0.1}, {"tau": 3.0}, {"surrogate_function": surrogate.ATan(3.0)}),
        "CUBALIF": ({"c_decay": 0.25}, {"v_decay": 0.5}, {"v_reset": None}, {"surrogate_function": surrogate.ATan()}),
        "ILIF": ({"tau": 4.0}, {"surrogate_function": surrogate.MultiLevelSpikeCount(2)} if kind == "ILIF" else {}),
    }
    for change in ({"v_threshold": 0.8}, {"detach_reset": True}, *changes[kind]):
        for module in (node, after):
            module.reset()
            for name, value in change.items():
                setattr(module, name, value)
        (expected, wanted), (actual, found) = observe(node, x), observe(after, x)
        assert same(actual, expected)
        torch.testing.assert_close(found, wanted, **TOLERANCE[torch.float32])
    spec = after.spec()
    assert after.spec() is spec and "_spec" not in copy.deepcopy(after).__dict__
    if kind == "ILIF":
        after.surrogate_function.grad_max = 1.5
        assert after.spec().extra == (2.0, 0.0, 1.5, 1.0)
    else:
        after.surrogate_function.alpha = 9.0
        assert after.spec().surrogate == sewsnn.surrogate.ATan(9.0)


OBSTACLES = [
    ("QIF", "v_c", torch.full((60,), 0.8), "v_c is a Tensor"),
    ("QIF", "a0", math.inf, "a0 is inf"),
    ("QIF", "v_rest", nn.Parameter(torch.zeros(())), "v_rest is a Parameter"),
    ("QIF", "tau", 0.5, "tau is 0.5"),
    ("QIF", "surrogate_function", surrogate.Sigmoid(spiking=False), "spiking is False"),
    ("CUBALIF", "c_decay", torch.full((60,), 0.5), "c_decay is a Tensor"),
    ("CUBALIF", "v_decay", torch.tensor(0.5), "v_decay is a Tensor"),
    ("CUBALIF", "surrogate_function", surrogate.S2NN(), "no surrogate like"),
    ("ILIF", "v_reset", 0.25, "the reset of ILIFNode is always soft"),
    ("ILIF", "v_threshold", 0.0, "v_threshold is 0.0"),
    ("ILIF", "tau", 0.75, "tau is 0.75"),
    ("ILIF", "surrogate_function", surrogate.Sigmoid(), "no surrogate like"),
]
if "ILIF" in FURTHER:
    counts = surrogate.MultiLevelSpikeCount
    infinite, odd, tensor = counts(4, grad_window=(-math.inf, 3.0)), counts(4), counts(4)
    odd.max_spike_count = 2.5
    tensor.grad_max = torch.tensor(3.0)
    hooked = counts(4)
    hooked.register_forward_hook(lambda *_: None)
    OBSTACLES += [
        ("ILIF", "surrogate_function", infinite, "grad_min is -inf"),
        ("ILIF", "surrogate_function", odd, "max_spike_count is 2.5"),
        ("ILIF", "surrogate_function", counts(2**22 + 1), "max_spike_count is 4194305"),
        ("ILIF", "surrogate_function", tensor, "grad_max is a Tensor"),
        ("ILIF", "surrogate_function", hooked, "has hooks"),
        ("QIF", "surrogate_function", counts(4), "for this neuron"),
    ]


def outcome(node):
    """What :func:`observe` returns, or SpikingJelly's error."""
    try:
        return observe(node, current(4, 2, 60))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("kind, name, value, reason", OBSTACLES)
def test_what_sewsnn_cannot_compute_stays_spikingjellys(kind, name, value, reason):
    if kind not in FURTHER:
        return
    node = make(kind, step_mode="m")
    after, _ = converted(node)
    for module in (node, after):
        delattr(module, name)
        setattr(module, name, value)
    left = sewsnn.convert.from_spikingjelly(node)
    assert not left.replaced and reason in left.left[0].reason and type(node) is FURTHER[kind]
    actual, expected = outcome(after), outcome(node)
    if isinstance(expected, str):
        assert actual == expected
    else:  # TorchScript's second run may round differently from its first
        torch.testing.assert_close(actual, expected, equal_nan=True)


@cubalif
def test_the_current_is_a_memory():
    node = make("CUBALIF", step_mode="m")
    after, _ = converted(node)
    x = current(3, 2, 20)
    assert [name for name, _ in after.named_memories()] == ["v", "c"] and after.c == node.c == 0.0
    for v, c in ((0.25, -0.5), (torch.full((2, 20), 0.25), 0.0), (0.0, torch.full((2, 20), -0.5, dtype=torch.float64))):
        for module in (node, after):
            module.v, module.c = v, c
        assert torch.equal(node(x), after(x))
        assert same(states(after), states(node))
    wider = current(3, 4, 20)  # states of another shape count as rest
    assert torch.equal(node(wider), after(wider)) and torch.equal(node.c, after.c)
    c = after.c
    y = current(3, 4, 20).requires_grad_()
    after(y)
    assert after.c.requires_grad and after.c is not c
    copied = copy.deepcopy(after)
    assert torch.equal(copied.c, after.c) and not copied.c.requires_grad
    c = after.c
    functional.detach_net(after)
    assert after.c is c and not c.requires_grad
    after(y).sum().backward()
    functional.reset_net(after)
    assert (after.v, after.c) == (0.0, 0.0)
    for module in (node.double(), after.double()):
        module.reset()
        module(x.double())
    assert after.c.dtype == torch.float64 and torch.equal(node.c, after.c)


@every_node
def test_states_of_transforms_do_not_stay(kind):
    after, _ = converted(make(kind, step_mode="m"))
    x = current(3, 2, 20)
    expected = after(x)
    after.reset()
    torch.func.grad(lambda x: after(x).sum())(x)
    assert not any(isinstance(getattr(after, name), torch.Tensor) for name in after.state_names)
    assert torch.equal(after(x), expected)


@every_node
def test_compiled(kind):
    """One graph also for calls that start from a kept state."""
    torch._dynamo.reset()  # all nodes share a code object, which torch compiles eight times at most
    node = make(kind, step_mode="m")
    after, _ = converted(node)
    compiled = torch.compile(after, backend="aot_eager", fullgraph=True, dynamic=True)
    x = current(3, 2, 20)
    for threshold in (1.0, 0.5):
        for module in (node, after):
            module.reset()
            module.v_threshold = threshold
        for _ in range(2):
            assert torch.equal(compiled(x), node(x))
        assert same(states(after), states(node))


def test_other_neurons_stay():
    left = [neuron.EIFNode(), neuron.IzhikevichNode(), neuron.KLIFNode()]
    report = sewsnn.convert.from_spikingjelly(nn.Sequential(*left))
    assert not report.replaced and [entry.reason for entry in report.left] == ["sewsnn has no such neuron"] * 3
