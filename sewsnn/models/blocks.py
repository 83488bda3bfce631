"""The blocks of SEW ResNet, Spiking ResNet and the plain network.

Batch norm, neuron and connection between two convolutions are one op (:func:`sewsnn.layers.bn_neuron`), unless
``fused`` is False. Blocks pass on their output together with ``skip``, a second handle to the same values for the
shortcut. Autograd then adds the two gradients inside the op's backward instead of in a separate pass.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sewsnn.layers import conv_over_time, over_time
from sewsnn.layers.connection import NOT_CONNECTED, Connection, connection_of
from sewsnn.layers.fused import norm_neuron_connection, over_steps
from sewsnn.layers.plan import must_be_called
from sewsnn.ops.bn import Output
from sewsnn.ops.reference import CONNECT

#: how a block joins its branch F(S) with its shortcut S: "sew" g(SN(F), S); "spiking" SN(F + S); "plain" SN(F)
RESIDUALS = ("sew", "spiking", "plain")


class Style(NamedTuple):
    """The settings that all blocks of a network share.

    Attributes:
        residual: ``"sew"`` (default), ``"spiking"`` or ``"plain"``.
        connect_f: ``"ADD"`` (default), ``"AND"`` or ``"IAND"``; only ``"sew"`` uses it.
        neuron: function that makes one neuron layer per call. Blocks need it. Default None.
        fused: batch norm, neuron and connection are one op. Default True.
        pack_spikes: convolutions keep the spikes they read as bits for backward. Default False.
        last_neuron: function that makes the last neuron of each block. Default None: ``neuron`` makes it.
    """

    residual: str = "sew"
    connect_f: str = "ADD"
    neuron: Callable[[], nn.Module] | None = None
    fused: bool = True
    pack_spikes: bool = False
    last_neuron: Callable[[], nn.Module] | None = None

    def checked(self) -> "Style":
        """The style itself, after a check.

        Returns:
            The same style.

        Raises:
            ValueError: ``residual`` or ``connect_f`` is unknown.
        """
        if self.residual not in RESIDUALS:
            raise ValueError(f"residual must be one of {', '.join(map(repr, RESIDUALS))}, got {self.residual!r}")
        if self.connect_f not in CONNECT:
            raise ValueError(f"connect_f must be one of {', '.join(map(repr, CONNECT))}, got {self.connect_f!r}")
        return self

    def connection(self) -> Connection:
        """How the last op of a block joins branch and shortcut.

        Returns:
            The connection.
        """
        f = {"sew": self.connect_f, "spiking": "ADD", "plain": None}[self.residual]
        return connection_of(f, self.residual == "spiking")


class Block(nn.Module):
    """Base class of the blocks: the shortcut and how it is joined with the branch.

    Subclasses add the ``convs`` convolutions of the branch as ``conv1``, ``bn1``, ``sn1``, ``conv2`` ...

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: stride of the block. The shortcut has a 1x1 convolution if the stride is not 1 or the channels change.
        style: the settings that all blocks of a network share (:class:`Style`).

    Raises:
        ValueError: ``style`` has an unknown ``residual`` or ``connect_f``.
    """

    convs: int

    def __init__(self, in_channels: int, channels: int, stride: int, style: Style):
        super().__init__()
        # The neurons are made. Drop the functions that make them, since pickle may not be able to store them.
        self.style = style.checked()._replace(neuron=None, last_neuron=None)
        self.connection = style.connection()
        self.downsample = None
        if style.residual != "plain" and (stride != 1 or in_channels != channels):
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )
            if style.residual == "sew":
                self.downsample_sn = style.neuron()

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The last batch norm of the branch; ``zero_init_residual`` starts its weight at 0."""
        return getattr(self, f"bn{self.convs}")

    def conv_bn_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yields every convolution with the norm that follows it."""
        for i in range(1, self.convs + 1):
            yield getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
        if self._downsample_is_a_pair():
            yield tuple(self.downsample)

    def _downsample_is_a_pair(self) -> bool:
        """Returns whether the shortcut is still a convolution and a norm without hooks on their joint call."""
        return (
            type(self.downsample) is nn.Sequential and len(self.downsample) == 2 and not must_be_called(self.downsample)
        )

    def _layer(self, name: int, x: Output, shortcut=None, connection=NOT_CONNECTED, **options) -> Output:
        conv, bn, sn = (getattr(self, f"{kind}{name}") for kind in ("conv", "bn", "sn"))
        z_seq = conv_over_time(conv, x)
        if shortcut is not None:
            shortcut = shortcut.to(z_seq.dtype)  # autocast narrows a convolution's output, not the input of a block
        return norm_neuron_connection(z_seq, bn, sn, shortcut, connection, fused=self.style.fused, **options)

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
        return norm_neuron_connection(z_seq, bn, sn, None, NOT_CONNECTED, fused=self.style.fused).out

    def run(self, x: Output, return_skip: bool, pool: nn.Module | None = None) -> Output:
        """Runs the block on the result of the previous op, which may have ``skip`` and packed spikes.

        Args:
            x: ``x.out`` is the input of the branch; the shortcut reads ``x.skip`` if there is one, else ``x.out``.
            return_skip: also return ``skip``, because the next block reads the output twice.
            pool: the max pooling of the output. Default None: no pooling.

        Returns:
            ``(out, skip, v, bits)`` of the block's last op.
        """
        a = x
        for i in range(1, self.convs):
            a = self._layer(i, a, pack_spikes=self.style.pack_spikes and torch.is_grad_enabled())
        options = {"return_skip": return_skip, "pool": pool}
        return self._layer(self.convs, a, self._shortcut(x), self.connection, **options)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x_seq: input ``[T, N, in_channels, H, W]``.

        Returns:
            ``[T, N, C, H', W']``: C is ``channels`` of the block, H' and W' are divided by the stride and rounded up.
        """
        return self.run(Output(x_seq, None, None, None), return_skip=False).out

    def extra_repr(self):
        connection = f", connect_f={self.style.connect_f!r}" if self.style.residual == "sew" else ""
        return f"residual={self.style.residual!r}{connection}, fused={self.style.fused}"


class BasicBlock(Block):
    """Residual block with two 3x3 convolutions, each followed by batch norm and a neuron.

        A = SN(BN(conv(SN(BN(conv(S))))))
        out = g(A, S) with ``residual="sew"``; SN(F(S) + S) with ``"spiking"``; A with ``"plain"``

    F(S) is A without its last neuron. ``expansion`` is 1.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: stride of the first convolution.
        style: the settings that all blocks of a network share (:class:`sewsnn.models.blocks.Style`).

    Raises:
        ValueError: ``style`` has an unknown ``residual`` or ``connect_f``.

    Source: main paper, section 3.2 and Table 1; supplement, Table S1.
    """

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
    """Residual block with convolutions 1x1, 3x3 and 1x1, each followed by batch norm and a neuron.

        A = SN(BN(conv1x1(SN(BN(conv3x3(SN(BN(conv1x1(S)))))))))
        out = g(A, S) with ``residual="sew"``; SN(F(S) + S) with ``"spiking"``; A with ``"plain"``

    F(S) is A without its last neuron. The 3x3 convolution has the stride. ``expansion`` is 4.

    Args:
        in_channels: channels of the input.
        width: channels of the first two convolutions. The last one, and so the output, has 4 times as many.
        stride: stride of the 3x3 convolution.
        style: the settings that all blocks of a network share (:class:`sewsnn.models.blocks.Style`).

    Raises:
        ValueError: ``style`` has an unknown ``residual`` or ``connect_f``.

    Source: main paper, section 3.2 and Table 1; supplement, Table S1.
    """

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
