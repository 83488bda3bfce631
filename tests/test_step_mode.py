"""Networks with one time-step per call, or in chunks, give the results of one call with all time-steps."""

import functools

import pytest
import torch
from cases import EPS, current
from torch import nn

from sewsnn import functional, models, neuron

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"widths": [8, 16], "blocks": [1, 1], "num_classes": 5}
POOLED = SMALL | {"blocks": [2, 1]}
NETWORKS = {
    "SEW ADD": ("sew_resnet", SMALL),
    "SEW AND": ("sew_resnet", SMALL | {"connect_f": "AND", "zero_init_residual": True}),
    "SEW IAND": ("sew_resnet", SMALL | {"connect_f": "IAND"}),
    "bottleneck": ("sew_resnet", SMALL | {"bottleneck": True, "stem": "imagenet"}),
    "Spiking": ("sew_resnet", SMALL | {"residual": "spiking", "stem": "small"}),
    "plain": ("sew_resnet", SMALL | {"residual": "plain", "stem": "small"}),
    "7B-Net": ("sew_7b_net", {"widths": [8, 8]} | {"blocks": [1, 1]}),
    "Spiking 7B-Net": ("spiking_7b_net", {"widths": [8, 8], "blocks": [1, 1]}),
    "plain 7B-Net": ("plain_7b_net", {"widths": [8, 8], "blocks": [1, 1]}),
    "Wide-7B-Net": ("sew_wide_7b_net", POOLED),
    "CIFAR-10 net": ("sew_cifar10_net", POOLED),
    "Spiking CIFAR-10 net": ("spiking_cifar10_net", POOLED),
}


def network(name, device, **settings):
    """A small network in float64 and evaluation mode, with spikes in all layers."""
    torch.manual_seed(0)
    model, structure = NETWORKS[name]
    net = models.create_model(model, **structure, **settings)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight.any():
            module.bias.data.uniform_(0.2, 0.8)
    return net.double().eval().to(device)


def frames(net, T, device):
    channels = next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    return current((T, 2, channels, 16, 16), torch.float64, device)


def recorded(net, calls):
    """Returns the logits and the spikes of every neuron layer over successive calls, both ``[T, N, ...]``."""
    spikes = {}

    def hook(name):
        def keep(module, inputs, s):
            spikes.setdefault(name, []).append(s.unsqueeze(0) if module.step_mode == "s" else s)

        return keep

    nodes = [(name, m) for name, m in net.named_modules() if isinstance(m, neuron.BaseNode)]
    hooks = [m.register_forward_hook(hook(name)) for name, m in nodes]
    with torch.no_grad():
        logits = calls(net)
    for h in hooks:
        h.remove()
    return torch.cat(logits), {name: torch.cat(s) for name, s in spikes.items()}


def assert_same(actual, expected):
    """Spikes are equal bit for bit; logits differ only by the order in which the classifier adds 16 to 64 products."""
    logits, spikes = actual
    assert spikes.keys() == expected[1].keys() and len(spikes) > 4
    for name, s in expected[1].items():
        assert torch.equal(spikes[name], s), name
    assert 0 < sum(s.mean() for s in spikes.values()) < len(spikes)
    scale = float(expected[0].abs().max())
    torch.testing.assert_close(logits, expected[0], rtol=0, atol=64 * EPS[torch.float64] * max(scale, 1))
    assert logits.std() > 1e-3


def one_by_one(x_seq):
    return lambda net: [net(x).unsqueeze(0) for x in x_seq]


@pytest.mark.parametrize("name", NETWORKS)
def test_single_steps_are_all_steps_at_once(name, device):
    """T calls in single-step mode, then again after ``reset_net``; without it the potentials are kept."""
    net = network(name, device)
    x_seq = frames(net, 4, device)
    expected = recorded(net, lambda net: [net(x_seq, return_seq=True)])
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    assert_same(recorded(net, one_by_one(x_seq)), expected)
    _, going_on = recorded(net, one_by_one(x_seq))
    assert any(not torch.equal(going_on[layer], s) for layer, s in expected[1].items())
    functional.reset_net(net)
    assert_same(recorded(net, one_by_one(x_seq)), expected)
    functional.set_step_mode(net, "m")
    assert_same(recorded(net, lambda net: [net(x_seq, return_seq=True)]), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_chunks_are_all_steps_at_once(name, device):
    """Nodes with ``keep_state`` continue from call to call until ``reset_net``."""
    make = neuron.ParametricLIFNode if "7B" in name else neuron.IFNode
    net = network(name, device, neuron=functools.partial(make, keep_state=True))
    x_seq = frames(net, 5, device)
    expected = recorded(network(name, device), lambda net: [net(x_seq, return_seq=True)])
    for _ in range(2):
        functional.reset_net(net)
        chunks = recorded(net, lambda net: [net(x, return_seq=True) for x in x_seq.split([2, 1, 2])])
        assert_same(chunks, expected)


@pytest.mark.parametrize("name", ["SEW ADD", "Spiking", "7B-Net"])
def test_fused_multi_step_is_single_step(name, device):
    """Without hooks all time-steps run in fused ops; the logits equal those of single steps up to rounding."""
    net = network(name, device)
    x_seq = frames(net, 4, device)
    with torch.no_grad():
        expected = net(x_seq, return_seq=True)
        functional.set_step_mode(net, "s")
        actual = torch.stack([net(x) for x in x_seq])
    torch.testing.assert_close(actual, expected, rtol=0, atol=64 * EPS[torch.float64] * max(1, expected.abs().max()))


def test_a_watched_shortcut_sees_the_same_steps():
    """A neuron in single-step mode gets one time-step after the other, with and without hooks."""
    net = models.create_model("sew_resnet", **SMALL, stem="small", T=4).eval()
    for module in net.modules():
        if isinstance(module, neuron.BaseNode):
            module.step_mode = "s"
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    functional.reset_net(net)
    net.layer2[0].downsample.register_forward_hook(lambda *_: None)
    assert torch.equal(net(x), expected)


def test_a_layer_called_reset_is_no_method():
    net = nn.Sequential(neuron.IFNode(keep_state=True))
    net.reset = nn.Linear(2, 2)
    net[0](torch.ones(1, 2, 2))
    functional.reset_net(net)
    assert net[0].v is None
