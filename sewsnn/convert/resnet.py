"""Code that SpikingJelly's SEW ResNets and Spiking ResNets share."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sewsnn.convert.fusion import norm_neuron
from sewsnn.layers.plan import is_altered, must_be_called

Triple = tuple[nn.Module, nn.Module, str]


class Network:
    """A network whose stem runs batch norm and neuron as one op."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(norm_neuron(self.conv1(x), self.bn1, self.sn1))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.avgpool(x).flatten(1 if self.avgpool.step_mode == "s" else 2))

    def fused_triples(self) -> Iterator[Triple]:
        """Yields norm, neuron, and the name of the connection in the same op."""
        yield self.bn1, self.sn1, ""


class Block:
    """The convolutions of a block except the last one, and its shortcut. ``convs`` is the number of convolutions."""

    convs: int

    def _branch(self, x: Tensor) -> Tensor:
        """The input of the last batch norm."""
        for i in range(1, self.convs):
            conv, bn, sn = self._layer(i)
            x = norm_neuron(conv(x), bn, sn)
        return self._layer(self.convs)[0](x)

    def _in_order(self, *others: nn.Module | None) -> bool:
        """Returns whether the block must call its modules in SpikingJelly's order, because hooks observe these calls.

        The op joins the last norm and neuron with the shortcut, so it runs after the shortcut; SpikingJelly calls them
        before. ``others`` are the shortcut's modules.
        """
        if torch.nn.modules.module._has_any_global_hook():
            return True
        _, bn, sn = self._layer(self.convs)
        below = (module for other in others if other is not None for module in other.modules())
        return any(is_altered(module) for module in (bn, sn, *below))

    def _layer(self, i: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        return tuple(getattr(self, f"{kind}{i}") for kind in ("conv", "bn", "sn"))

    def fused_triples(self) -> Iterator[Triple]:
        """Yields norm, neuron, and the name of the connection in the same op."""
        for i in range(1, self.convs):
            yield *self._layer(i)[1:], ""


def is_conv_norm(module: nn.Module) -> bool:
    """Returns whether the module is a plain pair of convolution and norm without hooks on their joint call."""
    plain = type(module) is nn.Sequential and len(module) == 2
    return plain and not must_be_called(module)
