"""Small networks in plain torch with the module structure of other programs, so that torch names their state dicts."""

import torch
from torch import nn

from sewsnn import functional


class ModuleContainer(nn.Module):
    """SpikingJelly's container at the time of the paper: it calls its layers, in ``.module``, for every time-step."""

    def __init__(self, *layers):
        super().__init__()
        self.module = nn.Sequential(*layers)

    def forward(self, x_seq):
        return self.module(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


class BareContainer(nn.Sequential):
    """The same since SpikingJelly 0.0.0.0.8."""

    def forward(self, x_seq):
        return super().forward(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


CONTAINERS = {"authors": ModuleContainer, "containers": BareContainer}


class IF(nn.Module):
    def forward(self, x_seq):
        return functional.if_multistep(x_seq)[0]


class PLIF(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x_seq):
        return functional.plif_multistep(x_seq, self.w)[0]


def conv_bn(inputs, outputs, kernel, stride=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def joined(connect_f, a, s):
    return {"ADD": a + s, "AND": a * s, "IAND": s * (1 - a)}[connect_f]


def convolutions(bottleneck, inputs, width, stride):
    """The arguments of conv_bn, and the number of output channels."""
    if bottleneck:
        return [(inputs, width, 1), (width, width, 3, stride), (width, 4 * width, 1)], 4 * width
    return [(inputs, width, 3, stride), (width, width, 3)], width


class ContainerBlock(nn.Module):
    """The authors' blocks. ``connect_f=None`` means Spiking ResNet; its shortcut has no neuron."""

    def __init__(self, container, bottleneck, inputs, width, stride, connect_f, neuron):
        super().__init__()
        self.connect_f = connect_f
        convs, outputs = convolutions(bottleneck, inputs, width, stride)
        self.depth = len(convs)
        for i, arguments in enumerate(convs, 1):
            self.add_module(f"conv{i}", container(*conv_bn(*arguments)))
            self.add_module(f"sn{i}", neuron())
        self.downsample = None
        if stride != 1 or inputs != outputs:
            pair = container(*conv_bn(inputs, outputs, 1, stride))
            self.downsample = pair if connect_f is None else nn.Sequential(pair, neuron())

    def forward(self, s):
        a = s
        for i in range(1, self.depth):
            a = getattr(self, f"sn{i}")(getattr(self, f"conv{i}")(a))
        if self.downsample is not None:
            s = self.downsample(s)
        last, sn = getattr(self, f"conv{self.depth}"), getattr(self, f"sn{self.depth}")
        return sn(last(a) + s) if self.connect_f is None else joined(self.connect_f, sn(last(a)), s)


class FlatBlock(nn.Module):
    """torchvision's block, with neurons under SpikingJelly's names."""

    def __init__(self, bottleneck, inputs, width, stride, connect_f, neuron):
        super().__init__()
        self.connect_f = connect_f
        convs, outputs = convolutions(bottleneck, inputs, width, stride)
        self.depth = len(convs)
        for i, arguments in enumerate(convs, 1):
            conv, bn = conv_bn(*arguments)
            for name, module in (("conv", conv), ("bn", bn), ("sn", neuron())):
                self.add_module(f"{name}{i}", module)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
            self.downsample_sn = neuron()

    def forward(self, s):
        a = s
        for i in range(1, self.depth + 1):
            conv, bn, sn = (getattr(self, f"{name}{i}") for name in ("conv", "bn", "sn"))
            a = sn(bn(conv(a.flatten(0, 1))).unflatten(0, a.shape[:2]))
        if self.downsample is not None:
            s = self.downsample_sn(self.downsample(s.flatten(0, 1)).unflatten(0, s.shape[:2]))
        return joined(self.connect_f, a, s)


class ForeignResNet(nn.Module):
    """Two stages of two blocks with 4 and 8 channels, 5 classes. ``container=None`` means torchvision's names."""

    def __init__(self, container, bottleneck, connect_f, neuron, T=3):
        super().__init__()
        self.T = T
        self.conv1, self.bn1 = conv_bn(3, 4, 7, stride=2)
        self.sn1 = neuron()
        self.maxpool = BareContainer(nn.MaxPool2d(3, 2, 1))
        channels = 4
        for stage, width in enumerate((4, 8), 1):
            blocks = []
            for i in range(2):
                arguments = (bottleneck, channels, width, 2 if stage == 2 and i == 0 else 1, connect_f, neuron)
                blocks.append(FlatBlock(*arguments) if container is None else ContainerBlock(container, *arguments))
                channels = width * (4 if bottleneck else 1)
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        z = self.bn1(self.conv1(x))
        s = self.layer2(self.layer1(self.maxpool(self.sn1(z.expand(self.T, *z.shape)))))
        return self.fc(s.mean((3, 4)).mean(0))


def unit(container, inputs, outputs, kernel, neuron):
    return nn.Sequential(container(*conv_bn(inputs, outputs, kernel)), neuron())


class EventBlock(nn.Module):
    """residual: ``"sew"`` (ADD), ``"plain"`` or ``"spiking"``."""

    def __init__(self, container, width, residual, neuron):
        super().__init__()
        self.residual = residual
        first = unit(container, width, width, 3, neuron)
        if residual == "spiking":
            self.conv = nn.Sequential(first, container(*conv_bn(width, width, 3)))
            self.sn = neuron()
        else:
            self.conv = nn.Sequential(first, unit(container, width, width, 3, neuron))

    def forward(self, s):
        out = self.conv(s)
        if self.residual == "spiking":
            return self.sn(s + out)
        return out + s if self.residual == "sew" else out


class ForeignEventNet(nn.Module):
    """An event network for 2 x 8 x 8 in one Sequential: 4, 4 and 8 channels; 1, 2 and 1 blocks; 5 classes."""

    def __init__(self, container, residual, kernel, neuron):
        super().__init__()
        layers, channels = [], 2
        for width, depth in ((4, 1), (4, 2), (8, 1)):
            if channels != width:
                layers.append(unit(container, channels, width, kernel, neuron))
            channels = width
            layers += [EventBlock(container, width, residual, neuron) for _ in range(depth)]
            layers.append(BareContainer(nn.MaxPool2d(2)))
        self.conv = nn.Sequential(*layers, nn.Flatten(2))
        self.out = nn.Linear(channels, 5)

    def forward(self, x_seq):
        return self.out(self.conv(x_seq).mean(0))
