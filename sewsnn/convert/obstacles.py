"""Why sewsnn cannot compute a SpikingJelly node with its present settings: :func:`obstacle`. Imports SpikingJelly."""

from spikingjelly.activation_based import neuron as theirs
from torch import Tensor, nn

from sewsnn.convert import surrogates
from sewsnn.convert.surrogates import is_number, named

_NONE = ()  # no class, for isinstance: 0.0.0.0.14 lacks some nodes
_ILIF = getattr(theirs, "ILIFNode", _NONE)
_USES_TAU = (theirs.LIFNode, theirs.QIFNode)
#: further settings that must be numbers
_FURTHER = (
    (theirs.QIFNode, ("v_c", "a0", "v_rest")),
    (getattr(theirs, "CUBALIFNode", _NONE), ("c_decay", "v_decay")),
)


def obstacle(node: nn.Module) -> str | None:
    """Why sewsnn cannot compute this SpikingJelly node with its current settings; None if it can."""
    counts = isinstance(node, _ILIF)
    if reason := surrogates.obstacle(node.surrogate_function, counts):
        return reason
    if not is_number(node.v_threshold):
        return f"v_threshold is {named(node.v_threshold)}, not a finite number"
    if node.v_reset is not None and not is_number(node.v_reset):
        return f"v_reset is {named(node.v_reset)}, neither None nor a finite number"
    if isinstance(node, _USES_TAU) and not (is_number(node.tau) and node.tau >= 1):
        return f"tau is {named(node.tau)}, not a finite number of at least 1"
    if isinstance(node, theirs.ParametricLIFNode) and not (isinstance(node.w, Tensor) and node.w.numel() == 1):
        return "w is not a tensor with one element"
    if counts and node.v_threshold <= 0:
        return f"v_threshold is {named(node.v_threshold)}; one spike must stand for a potential above 0"
    if counts and node.v_reset is not None:
        return f"v_reset is {named(node.v_reset)}, but the reset of ILIFNode is always soft (None)"
    for kind, names in _FURTHER:
        if isinstance(node, kind):
            for name in names:
                if not is_number(getattr(node, name)):
                    return f"{name} is {named(getattr(node, name))}, not a finite number"
    if getattr(node, "_neuron_precision", None) is not None:
        return "a precision is set for it (spikingjelly's neuron precision)"
    return None


def patched(node: nn.Module) -> str | None:
    """The name of a method that was replaced on this one object, which sewsnn would not call; None if there is none."""
    return next((name for name in vars(node) if callable(getattr(type(node), name, None))), None)
