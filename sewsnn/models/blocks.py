"""The blocks of SEW ResNet, Spiking ResNet and the plain network: BN, neuron and connection between convolutions are
one op (:func:`sewsnn.layers.bn_neuron`), unless ``fused`` is False.

Blocks hand on a pair: their output, and the same numbers once more for whoever reads them second (the shortcut), so
that the two gradients meet inside the op's backward and not in a pass of their own.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sewsnn.layers import bn_neuron, conv_over_time, over_time
from sewsnn.layers.bn_neuron import over_steps
from sewsnn.layers.fusing import must_be_called
from sewsnn.ops.bn import Output
from sewsnn.ops.reference import CONNECT

#: how a block joins its branch F(S) with its shortcut S: g(SN(F), S); SN(F + S); SN(F) alone
RESIDUALS = ("sew", "spiking", "plain")


class Style(NamedTuple):
    """What all blocks of a network share."""

    residual: str = "sew"
    connect_f: str = "ADD"
    neuron: Callable[[], nn.Module] | None = None
    fused: bool = True
    pack_spikes: bool = False
    last_neuron: Callable[[], nn.Module] | None = None  # of each block; None: as all others

    def checked(self) -> "Style":
        """Itself.

        Raises:
            ValueError: ``residual`` or ``connect_f`` is unknown.
        """
        if self.residual not in RESIDUALS:
            raise ValueError(f"residual must be one of {', '.join(map(repr, RESIDUALS))}, got {self.residual!r}")
        if self.connect_f not in CONNECT:
            raise ValueError(f"connect_f must be one of {', '.join(map(repr, CONNECT))}, got {self.connect_f!r}")
        return self


class Block(nn.Module):
    """The shortcut, and how it is joined. Subclasses add the branch's ``convs`` convolutions: conv1, bn1, sn1 ..."""

    convs: int

    def __init__(self, in_channels: int, channels: int, stride: int, style: Style):
        super().__init__()
        # It has made its neurons; what makes them may be what cannot be pickled.
        self.style = style.checked()._replace(neuron=None, last_neuron=None)
        self.downsample = None
        if style.residual != "plain" and (stride != 1 or in_channels != channels):
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )
            if style.residual == "sew":
                self.downsample_sn = style.neuron()

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The BN that ``zero_init_residual`` starts at 0."""
        return getattr(self, f"bn{self.convs}")

    def conv_bn_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Every convolution with the norm that follows it."""
        for i in range(1, self.convs + 1):
            yield getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
        if self._downsample_is_a_pair():
            yield tuple(self.downsample)

    def _downsample_is_a_pair(self) -> bool:
        """Convolution and norm, as it was made, and nobody watches it."""
        return (
            type(self.downsample) is nn.Sequential and len(self.downsample) == 2 and not must_be_called(self.downsample)
        )

    def _layer(self, name: int | str, x: Output, shortcut: Tensor | None = None, **options) -> Output:
        conv, bn, sn = (getattr(self, f"{kind}{name}") for kind in ("conv", "bn", "sn"))
        z_seq = conv_over_time(conv, x)
        if shortcut is not None:
            shortcut = shortcut.to(z_seq.dtype)  # autocast narrows what convolutions return, not what a block is given
        return bn_neuron(z_seq, bn, sn, shortcut, fused=self.style.fused, **options)

    def _shortcut(self, x: Output) -> Tensor | None:
        skip = x.out if x.skip is None else x.skip
        if self.style.residual == "plain":
            return None
        if self.downsample is None:
            return skip
        sn = self.downsample_sn if self.style.residual == "sew" else None
        if not self._downsample_is_a_pair():
            z_seq = over_time(self.downsample, skip)
            return z_seq if sn is None else over_steps(sn, z_seq)
        conv, bn = self.downsample
        z_seq = conv_over_time(conv, Output(skip, None, None, None))
        return bn_neuron(z_seq, bn, sn, fused=self.style.fused).out

    def run(self, x: Output, two: bool) -> Output:
        """``forward`` for a pair; whether its own output has two readers."""
        a = x
        for i in range(1, self.convs):
            a = self._layer(i, a, pack_spikes=self.style.pack_spikes and torch.is_grad_enabled())
        join = {
            "sew": {"connect_f": self.style.connect_f},
            "spiking": {"connect_f": "ADD", "connect_before": True},
            "plain": {},
        }
        return self._layer(self.convs, a, self._shortcut(x), two=two, **join[self.style.residual])

    def forward(self, x_seq: Tensor) -> Tensor:
        """``[T, N, C, H, W]`` in and out."""
        return self.run(Output(x_seq, None, None, None), two=False).out

    def extra_repr(self):
        connection = f", connect_f={self.style.connect_f!r}" if self.style.residual == "sew" else ""
        return f"residual={self.style.residual!r}{connection}, fused={self.style.fused}"


class BasicBlock(Block):
    """Two convolutions 3x3, each with BN and neuron. SEW: g(SN(BN(conv(SN(BN(conv(S)))))), S)."""

    expansion = 1
    convs = 2

    def __init__(self, in_channels: int, width: int, stride: int, style: Style):
        super().__init__(in_channels, width, stride, style)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.sn1 = style.neuron()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.sn2 = (style.last_neuron or style.neuron)()


class Bottleneck(Block):
    """As :class:`BasicBlock` with conv1x1, conv3x3 (which has the stride), conv1x1 to 4 times the width."""

    expansion = 4
    convs = 3

    def __init__(self, in_channels: int, width: int, stride: int, style: Style):
        channels = width * self.expansion
        super().__init__(in_channels, channels, stride, style)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.sn1 = style.neuron()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.sn2 = style.neuron()
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.sn3 = (style.last_neuron or style.neuron)()
