"""SpikingJelly's Spiking ResNets with batch norm, sum and neuron in one op."""

from collections.abc import Iterator

from spikingjelly.activation_based.model import spiking_resnet as theirs
from torch import Tensor

from sewsnn.convert import resnet
from sewsnn.convert.fusion import norm_neuron
from sewsnn.layers.connection import connection_of

_ADD_BEFORE = connection_of("ADD", connect_before=True)


class _Block(resnet.Block):
    def forward(self, x: Tensor) -> Tensor:
        z_seq = self._branch(x)
        _, bn, sn = self._layer(self.convs)
        if self.downsample is not None and self._in_order(self.downsample):
            y = bn(z_seq)
            return sn((y + self.downsample(x)).to(y.dtype))
        identity = x if self.downsample is None else self.downsample(x)
        return norm_neuron(z_seq, bn, sn, identity, _ADD_BEFORE)

    def fused_triples(self) -> Iterator[resnet.Triple]:
        yield from super().fused_triples()
        yield *self._layer(self.convs)[1:], ", ADD before the neuron"


class BasicBlock(_Block, theirs.BasicBlock):
    """SN(BN(conv(SN(BN(conv(S))))) + S)."""

    convs = 2


class Bottleneck(_Block, theirs.Bottleneck):
    """The same with three convolutions."""

    convs = 3


class SpikingResNet(resnet.Network, theirs.SpikingResNet):
    """Runs the stem in one op; the blocks do the rest."""


CLASSES = {theirs.BasicBlock: BasicBlock, theirs.Bottleneck: Bottleneck, theirs.SpikingResNet: SpikingResNet}
