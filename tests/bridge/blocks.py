"""Blocks with the structures that people write: what lies between batch norm and neuron (tests of the conversion).

Every class takes ``node``, a function that makes a multi-step neuron. Inputs are ``[T, N, 8, 6, 6]``.
"""

import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

C = 8


def conv(channels=C):
    return nn.Conv2d(C, channels, 3, padding=1, bias=False)


class Reshaped(nn.Module):
    """Batch norm of a merged batch, a view with the time axis, neuron, max pooling (Spikformer's patch embedding)."""

    def __init__(self, node):
        super().__init__()
        self.conv, self.bn, self.sn = conv(), nn.BatchNorm2d(C), node()
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        T, N = x.shape[:2]
        y = self.bn(self.conv(x.flatten(0, 1))).reshape(T, N, C, *x.shape[-2:]).contiguous()
        return self.pool(self.sn(y).flatten(0, 1)).reshape(T, N, C, 3, 3)


class Tokens(nn.Module):
    """Batch norm over the features of tokens: BN1d of a transposed Linear (Spikformer's q, k, v)."""

    def __init__(self, node):
        super().__init__()
        self.q, self.bn, self.sn = nn.Linear(C, C), nn.BatchNorm1d(C), node()
        self.k, self.bn_k, self.sn_k = nn.Conv1d(C, C, 1), nn.BatchNorm1d(C), node()

    def forward(self, x):
        T, N, _, H, W = x.shape
        tokens = x.flatten(3)  # [T, N, C, H W]
        q = self.q(tokens.transpose(-1, -2).flatten(0, 1))
        q = self.bn(q.transpose(-1, -2)).transpose(-1, -2).reshape(T, N, H * W, C).contiguous()
        k = self.bn_k(self.k(tokens.flatten(0, 1))).reshape(T, N, C, H * W)
        return self.sn(q) @ self.sn_k(k)


class Membrane(nn.Module):
    """Two blocks with the membrane shortcut: the sum goes to the neuron and on as the shortcut (Spike-driven
    Transformer, Spikingformer, MS-ResNet)."""

    def __init__(self, node):
        super().__init__()
        self.convs = nn.ModuleList(conv() for _ in range(3))
        self.bns = nn.ModuleList(nn.BatchNorm2d(C) for _ in range(3))
        self.sns = nn.ModuleList(node() for _ in range(3))

    def forward(self, x):
        u = self.bns[0](self.convs[0](x.flatten(0, 1))).reshape(x.shape)
        for i in (1, 2):
            y = self.bns[i](self.convs[i](self.sns[i - 1](u).flatten(0, 1))).reshape(x.shape)
            u = y + u if i == 1 else u + y
        return torch.cat([self.sns[2](u), u])


class Cloned(nn.Module):
    """A clone of batch norm's result is the shortcut (SpikingResformer)."""

    def __init__(self, node):
        super().__init__()
        self.bn1, self.sn1, self.conv = layer.BatchNorm2d(C, step_mode="m"), node(), conv()
        self.bn2, self.sn2 = layer.BatchNorm2d(C, step_mode="m"), node()

    def forward(self, x):
        x = self.bn1(x)
        kept = x.clone()
        x = self.bn2(self.conv(self.sn1(x).flatten(0, 1)).unflatten(0, x.shape[:2]))
        x = x + kept
        return self.sn2(x)


class InPlace(nn.Module):
    """The order of Spiking ResNet with a sum in place, and a shortcut with a batch norm of its own."""

    def __init__(self, node):
        super().__init__()
        self.conv1 = layer.SeqToANNContainer(conv(), nn.BatchNorm2d(C))
        self.conv2 = layer.SeqToANNContainer(conv(), nn.BatchNorm2d(C))
        self.down = layer.SeqToANNContainer(conv(), nn.BatchNorm2d(C))
        self.sn1, self.sn2 = node(), node()

    def forward(self, x):
        identity = self.down(x)
        out = self.conv2(self.sn1(self.conv1(x)))
        out += identity
        return self.sn2(out)


class Stem(nn.Module):
    """An image is normalised once and shown T times (the authors' SEW ResNet)."""

    def __init__(self, node):
        super().__init__()
        self.conv, self.bn, self.sn = conv(), nn.BatchNorm2d(C), node()

    def forward(self, x):
        y = self.bn(self.conv(x[0]))
        y.unsqueeze_(0)
        return self.sn(y.repeat(4, 1, 1, 1, 1))


class Named(nn.Sequential):
    """A Sequential that adds nothing."""


def nested(node):
    """Batch norm at the end of a nested container."""
    inner = layer.SeqToANNContainer(nn.Sequential(conv(), nn.Sequential(nn.BatchNorm2d(C), nn.Identity())))
    return Named(inner, nn.Dropout(0.0), node(), Named(layer.SeqToANNContainer(conv(), nn.BatchNorm2d(C)), node()))


class Pooled(nn.Module):
    """Max pooling between batch norm and neuron: of a merged batch, then a view (QKFormer), and of a sequence."""

    def __init__(self, node):
        super().__init__()
        self.conv1, self.bn1, self.pool, self.sn1 = conv(), nn.BatchNorm2d(C), nn.MaxPool2d(3, 2, 1), node()
        self.conv2 = layer.SeqToANNContainer(conv(), nn.BatchNorm2d(C), nn.MaxPool2d(2, 1))
        self.sn2, self.bn3, self.sn3 = node(), layer.BatchNorm2d(C, step_mode="m"), node()
        self.pool3 = layer.MaxPool2d(2, step_mode="m")

    def forward(self, x):
        T, N = x.shape[:2]
        y = self.pool(self.bn1(self.conv1(x.flatten(0, 1))))
        s = self.sn1(y.reshape(T, N, *y.shape[1:]).contiguous())
        return self.sn2(self.conv2(s)).sum() + self.sn3(self.pool3(self.bn3(x)))


class PooledSum(nn.Module):
    """Max pooling of batch norm's result, plus a shortcut, then the neuron; the sum goes on (MaxFormer)."""

    def __init__(self, node):
        super().__init__()
        self.conv, self.bn, self.sn = conv(), nn.BatchNorm2d(C), node()
        self.down = nn.Conv2d(C, C, 1, stride=2)

    def forward(self, x):
        flat = x.flatten(0, 1)
        y = nn.functional.max_pool2d(self.bn(self.conv(flat)), kernel_size=3, stride=2, padding=1)
        u = (y + self.down(flat)).unflatten(0, x.shape[:2])
        return self.sn(u) + u


#: each with the number of neurons whose input is the result of a batch norm
BLOCKS = {
    "reshaped": (Reshaped, 1),
    "tokens": (Tokens, 2),
    "membrane": (Membrane, 3),
    "cloned": (Cloned, 2),
    "in place": (InPlace, 2),
    "stem": (Stem, 1),
    "nested": (nested, 2),
    "pooled": (Pooled, 3),
    "pooled sum": (PooledSum, 1),
}


def lif(**settings):
    return neuron.LIFNode(step_mode="m", **settings)


def block(name, node=lif):
    """A block with batch norms of which neurons fire, and the number of its neurons after a batch norm."""
    torch.manual_seed(0)
    make, neurons = BLOCKS[name]
    net = make(node)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.uniform_(0.8, 1.6)
            module.bias.data.uniform_(0.2, 1.0)
    return net, neurons
