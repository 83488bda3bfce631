"""SpikingJelly's own networks: the conversion keeps outputs, gradients, running statistics and spikes."""

import copy
import pickle

import pytest
import torch
from sj_cases import assert_same_step, converted, current, step, watched
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import parametric_lif_net, sew_resnet, spiking_resnet, spiking_vgg
from torch import nn

SETTINGS = {"surrogate_function": surrogate.ATan(), "detach_reset": True}


IMAGE = (2, 2, 3, 40, 40)


def sew(block, connection, node=neuron.IFNode):
    """One block per stage."""
    net = sew_resnet.SEWResNet
    return net(block, [1, 1, 1, 1], num_classes=7, cnf=connection, spiking_neuron=node, **SETTINGS)


def spiking(block, node=neuron.LIFNode):
    return spiking_resnet.SpikingResNet(block, [1, 1, 1, 1], num_classes=7, spiking_neuron=node, **SETTINGS)


def vgg():
    net = spiking_vgg.spiking_vgg11_bn(spiking_neuron=neuron.IFNode, num_classes=7, init_weights=False, **SETTINGS)
    # A classifier of width 4096 would be most of the network, and this test does not need it.
    net.classifier = nn.Sequential(layer.Linear(512 * 7 * 7, 16), neuron.IFNode(**SETTINGS), layer.Linear(16, 7))
    return net


def gesture():
    return parametric_lif_net.DVSGestureNet(4, neuron.ParametricLIFNode, **SETTINGS)


#: model, input of one sequence, number of neurons
MODELS = {
    "sew18": (lambda: sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, **SETTINGS), IMAGE, 20),
    "sew50": (lambda: sew_resnet.sew_resnet50(cnf="IAND", spiking_neuron=neuron.IFNode, **SETTINGS), IMAGE, 53),
    "spiking18": (lambda: spiking_resnet.spiking_resnet18(spiking_neuron=neuron.LIFNode, **SETTINGS), IMAGE, 17),
    "vgg11": (vgg, (2, 2, 3, 32, 32), 9),
    "gesture": (gesture, (4, 2, 2, 128, 128), 7),
    "basic-AND": (lambda: sew(sew_resnet.BasicBlock, "AND"), IMAGE, 12),
    "basic-IAND": (lambda: sew(sew_resnet.BasicBlock, "IAND", neuron.ParametricLIFNode), IMAGE, 12),
    "bottleneck-ADD": (lambda: sew(sew_resnet.Bottleneck, "ADD"), IMAGE, 17),
    "bottleneck-AND": (lambda: sew(sew_resnet.Bottleneck, "AND", neuron.LIFNode), IMAGE, 17),
    "spiking-bottleneck": (lambda: spiking(spiking_resnet.Bottleneck), IMAGE, 13),
}


def built(name):
    """A network in multi-step mode as after some training: different norms, and neurons that fire."""
    make, shape, neurons = MODELS[name]
    torch.manual_seed(0)
    net = make()
    functional.set_step_mode(net, "m")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.6)
            module.bias.data.uniform_(-0.2, 0.6)
    return net, current(*shape), neurons


@pytest.mark.parametrize("name", MODELS)
def test_as_before(name, fused):
    calls = fused
    net, x, neurons = built(name)

    # Neurons without fusion, float32, training: every spike is the same.
    after, report = converted(net, fuse=False)
    assert len(report) == neurons and report.fused == 0
    expected, actual = {}, {}
    assert_same_step(step(after, x, actual), step(net, x, expected), 1e-3)
    assert actual.keys() == expected.keys() and len(actual) == neurons
    assert all(torch.equal(actual[name], s) for name, s in expected.items())
    assert sum(0 < s.mean() < 1 for s in expected.values()) > neurons // 2

    # Fused, in double, where rounding changes no spike: outputs, all gradients, running statistics.
    net, x = net.double(), x.double()
    after, report = converted(net)
    assert list(after.state_dict()) == list(net.state_dict())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert report.fused >= min(neurons, norms) - 3  # a Spiking ResNet has norms on its shortcuts without a neuron
    assert_same_step(step(after, x), step(net, x), 1e-9)
    assert len(calls) == report.fused
    net.eval(), after.eval()
    with torch.no_grad():
        torch.testing.assert_close(after(x), net(x), rtol=1e-9, atol=1e-9)
    assert len(calls) == 2 * report.fused


@pytest.fixture(scope="module")
def small():
    net, x, _ = built("basic-IAND")
    return net.eval(), x


def test_in_float32(small):
    """Batch norm rounds differently, so potentials at the threshold may fire: few do, and outputs change little."""
    net, x = small
    after, _ = converted(net)
    with torch.no_grad():
        expected, actual = net(x), after(x)
    functional.reset_net(net)
    assert (actual - expected).norm() <= 0.05 * expected.norm()


def test_watched_neurons(small):
    """With hooks on every neuron all modules run, and every spike is the same."""
    net, x = small
    after, _ = converted(net)
    expected, actual = {}, {}
    for model, seen in ((net, expected), (after, actual)):
        with watched(model, seen), torch.no_grad():
            model(x)
        functional.reset_net(model)
    assert len(actual) == 12 and all(torch.equal(actual[name], s) for name, s in expected.items())


def test_copies(small):
    net, x = small
    after, _ = converted(net)
    with torch.no_grad():
        expected = after(x)
        for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
            functional.reset_net(copied)
            assert torch.equal(copied(x), expected)


def test_step_by_step(small):
    net, x = small
    after, _ = converted(net)
    for model in (net, after):
        functional.set_step_mode(model, "s")
    with torch.no_grad():
        assert all(torch.equal(net(t), after(t)) for t in x)
    for model in (net, after):
        functional.reset_net(model)
        functional.set_step_mode(model, "m")


def test_an_unknown_connection(small):
    net = copy.deepcopy(small[0])
    net.layer2[0].cnf = "XOR"
    after, report = converted(net)
    assert type(after.layer2[0]) is sew_resnet.BasicBlock and report.fused == 9
    with pytest.raises(NotImplementedError):
        after(small[1])


def test_a_changed_downsample(small):
    """A replaced convolution or norm runs by itself."""
    net, x = copy.deepcopy(small[0]).double(), small[1].double()
    net.layer2[0].downsample.append(nn.Identity())
    after, report = converted(net)
    assert report.fused == 11
    with torch.no_grad():
        torch.testing.assert_close(after(x), net(x))


@pytest.mark.parametrize("name", ["basic-AND", "spiking-bottleneck"])
def test_autocast(name):
    """A block whose shortcut has another dtype than its convolutions' results; and a training step."""
    net, x, _ = built(name)
    after, _ = converted(net)
    with torch.autocast("cpu", torch.bfloat16):
        after.layer1[0](current(2, 2, 64, 6, 6))
        functional.reset_net(after)
        loss = after(x).square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in after.parameters())
