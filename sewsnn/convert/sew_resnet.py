"""SpikingJelly's SEW ResNets with batch norm, neuron and connection in one op."""

from collections.abc import Iterator

from spikingjelly.activation_based.model import sew_resnet as theirs
from torch import Tensor, nn

from sewsnn.convert import resnet
from sewsnn.convert.fusion import norm_neuron
from sewsnn.layers.connection import connection_of
from sewsnn.ops.reference import CONNECT


class _Block(resnet.Block):
    joined = tuple(CONNECT)  #: the connections that have the same meaning as in sewsnn

    def forward(self, x: Tensor) -> Tensor:
        if self.cnf not in CONNECT:
            return super().forward(x)  # raises SpikingJelly's error for an unknown connection
        z_seq = self._branch(x)
        _, bn, sn = self._layer(self.convs)
        if self.downsample is not None and self._in_order(self.downsample, self.downsample_sn):
            return self._connected(norm_neuron(z_seq, bn, sn), self._shortcut(x))
        identity = x if self.downsample is None else self._shortcut(x)
        if self._joins(sn):
            return norm_neuron(z_seq, bn, sn, identity, connection_of(self.cnf))
        return self._connected(norm_neuron(z_seq, bn, sn), identity)

    def _connected(self, a: Tensor, shortcut: Tensor) -> Tensor:
        """The connection after the op, as SpikingJelly computes it."""
        return theirs.sew_function(shortcut, a, self.cnf)

    def _joins(self, sn: nn.Module) -> bool:
        """Returns whether the op of the last norm and neuron includes the connection.

        AND and IAND need spikes of 0 or 1, and ILIFNode counts.
        """
        return self.cnf in self.joined and (self.cnf == "ADD" or getattr(sn, "binary_spikes", True))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not resnet.is_conv_norm(self.downsample):
            return self.downsample_sn(self.downsample(x))
        conv, bn = self.downsample
        return norm_neuron(conv(x), bn, self.downsample_sn)

    def fused_triples(self) -> Iterator[resnet.Triple]:
        if self.cnf not in CONNECT:
            return
        yield from super().fused_triples()
        _, bn, sn = self._layer(self.convs)
        yield bn, sn, f", {self.cnf}" if self._joins(sn) else ""
        if self.downsample is not None and resnet.is_conv_norm(self.downsample):
            yield self.downsample[1], self.downsample_sn, ""


class BasicBlock(_Block, theirs.BasicBlock):
    """The connection g(A, S) is the same as in sewsnn."""

    convs = 2


class Bottleneck(_Block, theirs.Bottleneck):
    """SpikingJelly's Bottleneck computes IAND as A (1 - S), the reverse of the paper and of :class:`BasicBlock`.

    This class keeps that: it applies IAND after the op.
    """

    convs = 3
    joined = ("ADD", "AND")

    def _connected(self, a: Tensor, shortcut: Tensor) -> Tensor:
        return theirs.sew_function(a, shortcut, self.cnf)


class SEWResNet(resnet.Network, theirs.SEWResNet):
    """Runs the stem in one op; the blocks do the rest."""


CLASSES = {theirs.BasicBlock: BasicBlock, theirs.Bottleneck: Bottleneck, theirs.SEWResNet: SEWResNet}
