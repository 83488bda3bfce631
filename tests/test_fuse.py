"""layers.fuse: batch norm folded into the convolutions for evaluation."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sewsnn import layers, models, neuron


def trained(**settings):
    """A small network with running statistics of random data."""
    torch.manual_seed(0)
    model = models.create_model("sew_resnet", blocks=[1, 1], widths=[8, 16], num_classes=5, **settings).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.5)
    for _ in range(20):
        model(torch.rand(4, 3, 16, 16, dtype=torch.float64))
    return model


@pytest.mark.parametrize("stem", ("small", "imagenet"))
@pytest.mark.parametrize("bottleneck", (False, True))
@pytest.mark.parametrize(
    "settings",
    [{"connect_f": "ADD"}, {"connect_f": "AND"}, {"connect_f": "IAND"}, {"residual": "spiking"}, {"residual": "plain"}],
    ids=lambda s: "".join(s.values()),
)
def test_outputs_agree(settings, bottleneck, stem, device):
    model = trained(stem=stem, bottleneck=bottleneck, **settings).to(device).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    fused = layers.fuse(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64, device=device)
    with torch.no_grad():
        for images in (x, x.expand(3, *x.shape) * torch.rand(3, 1, 1, 1, 1, dtype=x.dtype, device=device)):
            torch.testing.assert_close(fused(images), model(images), rtol=1e-9, atol=1e-9)
    assert not fused.training
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # the model itself is as it was


def test_a_module_of_your_own(device):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = layers.BNNeuron(8, neuron.LIFNode(tau=3.0), connect_f="ADD")
            self.tail = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())

        def conv_bn_pairs(self):
            yield self.conv, self.norm

        def forward(self, x_seq, shortcut):
            s_seq = self.norm(layers.over_time(self.conv, x_seq), shortcut)
            return layers.over_time(self.tail, s_seq)

    torch.manual_seed(0)
    net = Net().to(device).double()
    x = torch.rand(4, 2, 3, 6, 6, dtype=torch.float64, device=device)
    shortcut = torch.randint(0, 2, (4, 2, 8, 6, 6), device=device).double()
    for _ in range(10):
        net(x + 0.1 * torch.rand_like(x), shortcut)
    net.eval()
    fused = layers.fuse(net)
    assert isinstance(fused.norm, layers.NeuronConnection) and isinstance(fused.tail[1], nn.Identity)
    torch.testing.assert_close(fused(x, shortcut), net(x, shortcut), rtol=1e-9, atol=1e-9)


def test_errors():
    with pytest.raises(TypeError, match="model must be a module"):
        layers.fuse("model")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(ValueError, match="no running statistics"):
        layers.fuse(net)


def _twice(module, args, output):
    return 2 * output


class Layers(nn.Module):
    def __init__(self, conv, bn):
        super().__init__()
        self.conv, self.bn = conv, bn

    def conv_bn_pairs(self):
        yield self.conv, self.bn

    def forward(self, x):
        return self.bn(self.conv(x)[None])[0]


class Doubled(layers.BNNeuron):
    def forward(self, z_seq):
        return 2 * super().forward(z_seq - 1)


class Turned(Layers):
    """A derived class inherits ``conv_bn_pairs``, but its forward no longer matches it."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.conv(self.bn(x))


def odd_networks():
    """Modules with effects that the weights of a convolution cannot replace."""
    conv, bn, relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
    other = lambda: nn.Sequential(nn.Conv2d(3, 3, 1), bn)  # noqa: E731
    watched = nn.Conv2d(3, 3, 1)
    watched.register_forward_hook(_twice)
    yield "a norm in two places", nn.Sequential(other(), other())
    yield "a convolution in two places", nn.Sequential(conv, bn, nn.Sequential(conv, nn.BatchNorm2d(3)))
    yield "a module between, which came before", nn.Sequential(relu, conv, relu, bn)
    yield "a hook that changes what comes out", nn.Sequential(watched, bn)
    replaced = nn.BatchNorm2d(3)
    replaced.forward = lambda x, before=replaced.forward: 2 * before(x)
    yield "a norm whose forward was replaced", nn.Sequential(nn.Conv2d(3, 3, 1), replaced)
    turned = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    turned.forward = lambda x, net=turned: net[0](net[1](x))
    yield "a Sequential whose forward was replaced", turned
    yield "a class derived from one that names its pairs", Turned()
    yield "a layer with a forward of its own", Layers(nn.Conv2d(3, 3, 1), Doubled(3))
    yield "weights made by a parametrization", nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), bn)
    yield "a transposed convolution", nn.Sequential(nn.ConvTranspose2d(3, 3, 2), bn)


@pytest.mark.parametrize("net", [pytest.param(net, id=name) for name, net in odd_networks()])
def test_what_cannot_be_folded_stays(net, device):
    net = net.to(device)
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(3, generator=generator))
            module.running_var.copy_(torch.rand(3, generator=generator) + 0.5)
    x = torch.randn(2, 3, 4, 4, generator=generator).to(device)
    fused = layers.fuse(net.eval())
    with torch.no_grad():
        torch.testing.assert_close(fused(x), net(x), rtol=1e-4, atol=1e-5)
