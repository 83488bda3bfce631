"""The nodes of ``spikingjelly.activation_based`` (0.0.0.0.14, 2.0), computed by sewsnn. Imports SpikingJelly."""

from spikingjelly.activation_based import neuron as theirs
from spikingjelly.activation_based import surrogate

from sewsnn import neuron
from sewsnn.convert import surrogates
from sewsnn.convert.bridge import Bridge
from sewsnn.convert.state import SequenceBesideMemories

surrogates.register(surrogate)
_V2 = hasattr(theirs.BaseNode, "materialize_states")


class _Bridge(*((SequenceBesideMemories, Bridge) if _V2 else (Bridge,))):
    state_follows_input = _V2


class IFNode(_Bridge, neuron.IFNode, theirs.IFNode):
    """SpikingJelly's IFNode, computed by sewsnn."""


class LIFNode(_Bridge, neuron.LIFNode, theirs.LIFNode):
    """SpikingJelly's LIFNode, computed by sewsnn."""


class ParametricLIFNode(_Bridge, neuron.ParametricLIFNode, theirs.ParametricLIFNode):
    """SpikingJelly's ParametricLIFNode, computed by sewsnn."""

    tau_grad = "full"


class QIFNode(_Bridge, neuron.QIFNode, theirs.QIFNode):
    """SpikingJelly's QIFNode, computed by sewsnn."""


#: the classes that are swapped, by exact type
CLASSES: dict[type, type] = {
    theirs.IFNode: IFNode,
    theirs.LIFNode: LIFNode,
    theirs.ParametricLIFNode: ParametricLIFNode,
    theirs.QIFNode: QIFNode,
}

if hasattr(theirs, "CUBALIFNode"):  # 0.0.0.0.14 lacks it

    class CUBALIFNode(_Bridge, neuron.CUBALIFNode, theirs.CUBALIFNode):
        """SpikingJelly's CUBALIFNode, computed by sewsnn."""

        def extra_repr(self):
            return f"{super().extra_repr()}, c_decay={self.c_decay}, v_decay={self.v_decay}"  # SpikingJelly omits them

    CLASSES[theirs.CUBALIFNode] = CUBALIFNode

if hasattr(theirs, "ILIFNode"):

    class ILIFNode(_Bridge, neuron.ILIFNode, theirs.ILIFNode):
        """SpikingJelly's ILIFNode, computed by sewsnn."""

        def _extra(self):
            return *surrogates.numbers_of(self.surrogate_function), 1  # D and the window

    CLASSES[theirs.ILIFNode] = ILIFNode
