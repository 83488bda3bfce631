"""LIF and PLIF nodes that learn their threshold or time constant, one for the layer or one for each channel."""

import copy
import pickle

import pytest
import torch
from cases import current
from neuron_cases import BACKENDS
from torch import nn

from sewsnn import layers, neuron

every_backend = pytest.mark.parametrize("backend", BACKENDS)
MAKE = {
    "threshold": lambda **kw: neuron.LIFNode(3.0, v_threshold=0.8, learn_threshold=True, **kw),
    "tau": lambda **kw: neuron.LIFNode(3.0, v_threshold=0.8, learn_tau=True, **kw),
    "both": lambda **kw: neuron.LIFNode(3.0, v_threshold=0.8, learn_tau=True, learn_threshold=True, **kw),
    "PLIF": lambda **kw: neuron.ParametricLIFNode(3.0, v_threshold=0.8, learn_threshold=True, **kw),
}
every_kind = pytest.mark.parametrize("name", MAKE)


@every_backend
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("tau", [1.0, 2.0, 3.0])
def test_a_learnt_threshold_gives_the_spikes_of_lif(tau, decay_input, backend, device):
    x = current((20, 2, 5, 7), device=device)
    plain = neuron.LIFNode(tau, decay_input, 0.7, -0.1, backend=backend)
    expected = plain(x)
    for channels in (None, 5):
        node = neuron.LIFNode(tau, decay_input, 0.7, -0.1, learn_threshold=True, channels=channels, backend=backend)
        node.to(device)
        assert torch.equal(node(x), expected) and torch.equal(node.v, plain.v)


@every_backend
def test_a_learnt_time_constant_is_plif(backend, device):
    x = current((20, 2, 5, 7), device=device)
    plif = neuron.ParametricLIFNode(3.0, backend=backend).to(device)
    expected = plif(x)
    for channels in (None, 5):
        node = neuron.LIFNode(3.0, learn_tau=True, channels=channels, backend=backend).to(device)
        assert torch.equal(node(x), expected)
        assert node.kind == ("PLIF" if channels is None else "LearntLIF")


@every_backend
@every_kind
def test_every_channel_learns_alone(name, backend, device):
    """The gradients of C channels are those of C neurons, each with one number, on their own slices."""
    x = current((17, 3, 4, 6), torch.float64, device)
    node = MAKE[name](channels=4, backend=backend).double().to(device)
    with torch.no_grad():
        for parameter in node.parameters():
            parameter += torch.linspace(-0.2, 0.3, 4)
    s = node(x)
    (s * torch.linspace(-1, 1, 6, device=device)).sum().backward()
    for c in range(4):
        one = MAKE[name](backend=backend).double().to(device)
        with torch.no_grad():
            for mine, all_of_them in zip(one.parameters(), node.parameters(), strict=True):
                mine.copy_(all_of_them[c])
        part = one(x[:, :, c])
        assert torch.equal(part, s[:, :, c])
        (part * torch.linspace(-1, 1, 6, device=device)).sum().backward()
        for mine, all_of_them in zip(one.parameters(), node.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, all_of_them.grad[c], rtol=1e-11, atol=1e-11)


@every_kind
def test_the_backends_have_the_same_gradients(name, device):
    x = current((9, 2, 5, 4), torch.float64, device)
    for channels in (None, 5):
        grads = []
        for backend in BACKENDS:
            node = MAKE[name](channels=channels, backend=backend).double().to(device)
            node(x).square().sum().backward()
            grads.append([p.grad for p in node.parameters()])
        assert all(g.abs().sum() > 0 for g in grads[0])
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_it_learns_a_threshold(device):
    x = current((8, 200), device=device)
    target = neuron.LIFNode(v_threshold=1.6)(x).mean()
    node = neuron.LIFNode(learn_threshold=True).to(device)
    optimizer = torch.optim.SGD(node.parameters(), 3.0)
    for _ in range(60):
        optimizer.zero_grad()
        (node(x).mean() - target).square().backward()
        optimizer.step()
    assert abs(node.v_threshold - 1.6) < 0.2


@every_kind
def test_settings_read_the_parameters(name):
    node, channels = MAKE[name](), MAKE[name](channels=3)
    names = {"threshold": {"threshold"}, "tau": {"w"}}.get(name, {"w", "threshold"})
    assert set(node.state_dict()) == set(dict(node.named_parameters())) == names
    assert all(p.shape == () for p in node.parameters()) and all(p.shape == (3,) for p in channels.parameters())
    assert node.v_threshold == pytest.approx(0.8) and node.tau == pytest.approx(3.0) and isinstance(node.tau, float)
    learnt = {"threshold": ("v_threshold", "threshold"), "w": ("tau", "w")}
    for parameter in names:
        setting = learnt[parameter][0]
        value = getattr(channels, setting)
        assert value.shape == (3,) and not value.requires_grad
        with torch.no_grad():
            getattr(node, parameter).fill_(-0.5)
        assert getattr(node, setting) == pytest.approx(-0.5 if parameter == "threshold" else 1 + 2.718281828**0.5)
        with pytest.raises(AttributeError, match=f"{setting} is learnt .* change the parameter {parameter}"):
            setattr(node, setting, 2.0)
        with pytest.raises(TypeError, match=f"{setting} must be a number"):
            setattr(node, setting, nn.Parameter(torch.tensor(2.0)))
    if name == "threshold":
        node.tau = 4.0
        assert node.spec().tau == 4.0
    assert "v_threshold=" in repr(node) and "channels=3" in repr(channels)
    with pytest.raises(AttributeError):  # the parameters have this many numbers
        channels.channels = 4
    for parameter in names:
        with pytest.raises(AttributeError, match=f"{learnt[parameter][0]} is learnt and cannot be deleted"):
            delattr(node, learnt[parameter][0])


@every_kind
def test_copies_and_state_dicts(name):
    node, x = MAKE[name](channels=3), current((4, 2, 3, 5))
    with torch.no_grad():
        for parameter in node.parameters():
            parameter += torch.randn(3) * 0.1
    other = MAKE[name](channels=3)
    other.load_state_dict(node.state_dict())
    for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node)), other):
        assert torch.equal(twin(x), node(x)) and torch.equal(twin.v, node.v)
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in node.parameters()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        MAKE[name]().load_state_dict(node.state_dict())


def test_a_plain_node_has_no_parameters():
    node = neuron.LIFNode()
    assert node.kind == "LIF" and node.spec().kind == "LIF" and not list(node.parameters())
    assert node.learnt_parameters(torch.float32) is None
    assert neuron.ParametricLIFNode().kind == "PLIF"


def test_frozen_time_constants(device):
    node = neuron.ParametricLIFNode(channels=3, learn_threshold=True, tau_grad="frozen").to(device)
    node(current((4, 2, 3), device=device)).sum().backward()
    assert node.w.grad is None and node.threshold.grad is not None


@every_kind
def test_single_steps(name, device):
    x = current((6, 2, 3, 5), device=device)
    multi, single = MAKE[name](channels=3).to(device), MAKE[name](channels=3, step_mode="s").to(device)
    assert torch.equal(torch.stack([single(x_t) for x_t in x]), multi(x)) and torch.equal(single.v, multi.v)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: neuron.LIFNode(channels=3), ValueError, "channels needs learn_tau=True or learn_threshold=True"),
        (lambda: neuron.LIFNode(learn_threshold=True, channels=0), ValueError, "channels must be at least 1"),
        (lambda: neuron.LIFNode(learn_threshold=True, channels=2.0), TypeError, "channels must be an int or None"),
        (lambda: neuron.LIFNode(learn_threshold="no"), TypeError, "learn_threshold must be True or False"),
        (lambda: neuron.LIFNode(learn_tau=2), TypeError, "learn_tau must be True or False"),
        (lambda: neuron.ParametricLIFNode(learn_threshold=None), TypeError, "learn_threshold must be True or False"),
        (lambda: neuron.LIFNode(1.0, learn_tau=True), ValueError, "tau must be above 1"),
        (lambda: neuron.LIFNode(0.5, learn_tau=True), ValueError, "tau must be at least 1"),
        (
            lambda: MAKE["both"](channels=3)(torch.rand(4, 2, 5)),
            ValueError,
            r"x must be \[T, N, C, .*C = 3 .*\[4, 2, 5\]",
        ),
        (lambda: MAKE["both"](channels=3)(torch.rand(4, 3)), ValueError, r"x must be \[T, N, C, .*C = 3"),
        (
            lambda: MAKE["PLIF"](channels=1, step_mode="s")(torch.rand(4, 3)),
            ValueError,
            r"x must be \[N, C, .*C = 1 \(channels=1\), got shape \[4, 3\]",
        ),
        (
            lambda: layers.BNNeuron(4, MAKE["both"](channels=3))(torch.rand(2, 2, 4, 3, 3)),
            ValueError,
            r"z_seq must be \[T, N, C, .*C = 3 \(channels=3\)",
        ),
    ],
    ids=range(12),
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


@every_kind
def test_compiled(name, device):
    torch._dynamo.reset()
    for channels in (None, 3):
        node = MAKE[name](channels=channels).to(device)
        compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
        x = current((20, 2, 3, 4), device=device).requires_grad_()
        found, expected = compiled(x), node(x)
        assert torch.equal(found, expected)
        leaves = [x, *node.parameters()]
        grads = [torch.autograd.grad(s.square().sum(), leaves) for s in (found, expected)]
        assert all(map(torch.equal, *grads))
