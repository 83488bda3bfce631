"""What the SEW and the Spiking ResNets of SpikingJelly share."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sewsnn.convert.fusion import FusedSequential, norm_neuron
from sewsnn.layers.fusing import is_altered, must_be_called

Triple = tuple[nn.Module, nn.Module, str]


class Network:
    """The stem's batch norm and neuron are one op."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(norm_neuron(self.conv1(x), self.bn1, self.sn1))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.avgpool(x).flatten(1 if self.avgpool.step_mode == "s" else 2))

    def fused_triples(self) -> Iterator[Triple]:
        """Norm, neuron, and what else is in the op."""
        yield self.bn1, self.sn1, ""


class Block:
    """The convolutions of a block but the last, and its shortcut. ``convs`` is their number."""

    convs: int

    def _branch(self, x: Tensor) -> Tensor:
        """What the last batch norm is given."""
        for i in range(1, self.convs):
            conv, bn, sn = self._layer(i)
            x = norm_neuron(conv(x), bn, sn)
        return self._layer(self.convs)[0](x)

    def _in_order(self, *others: nn.Module | None) -> bool:
        """Whether somebody watches the calls of the last norm or neuron, or of the shortcut's modules ``others``: the
        op joins the last two with the shortcut, and so runs after it, where SpikingJelly calls them before."""
        if torch.nn.modules.module._has_any_global_hook():
            return True
        _, bn, sn = self._layer(self.convs)
        below = (module for other in others if other is not None for module in other.modules())
        return any(is_altered(module) for module in (bn, sn, *below))

    def _layer(self, i: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        return tuple(getattr(self, f"{kind}{i}") for kind in ("conv", "bn", "sn"))

    def fused_triples(self) -> Iterator[Triple]:
        """Norm, neuron, and what else is in the op."""
        for i in range(1, self.convs):
            yield *self._layer(i)[1:], ""


def is_conv_norm(module: nn.Module) -> bool:
    """Whether these are a convolution and a norm whose calls nobody watches together."""
    plain = type(module) in (nn.Sequential, FusedSequential) and len(module) == 2
    return plain and not must_be_called(module)
