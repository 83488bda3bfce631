"""Why sewsnn cannot compute a SpikingJelly node with its present settings: :func:`obstacle`."""

from torch import Tensor, nn

from sewsnn.convert import surrogates
from sewsnn.convert.surrogates import is_number, named

#: settings of SpikingJelly's nodes that not every kind of neuron has
SOME = {"LIF": ("tau",), "QIF": ("tau", "v_c", "a0", "v_rest"), "CUBALIF": ("c_decay", "v_decay"), "ILIF": ("tau",)}


def obstacle(node: nn.Module, kind: str) -> str | None:
    """Why sewsnn cannot compute this SpikingJelly node with its current settings; None if it can.

    Args:
        node: the node, converted or not.
        kind: the neuron's name in :data:`sewsnn.ops.reference.NEURONS`.
    """
    counts = kind == "ILIF"
    if reason := surrogates.obstacle(node.surrogate_function, counts):
        return reason
    if not is_number(node.v_threshold):
        return f"v_threshold is {named(node.v_threshold)}, not a finite number"
    if node.v_reset is not None and not is_number(node.v_reset):
        return f"v_reset is {named(node.v_reset)}, neither None nor a finite number"
    if "tau" in SOME.get(kind, ()) and not (is_number(node.tau) and node.tau >= 1):
        return f"tau is {named(node.tau)}, not a finite number of at least 1"
    if kind == "PLIF" and not (isinstance(node.w, Tensor) and node.w.numel() == 1):
        return "w is not a tensor with one element"
    if counts and node.v_threshold <= 0:
        return f"v_threshold is {named(node.v_threshold)}; one spike must stand for a potential above 0"
    if counts and node.v_reset is not None:
        return f"v_reset is {named(node.v_reset)}, but the reset of ILIFNode is always soft (None)"
    for name in SOME.get(kind, ()):
        if not is_number(getattr(node, name)):
            return f"{name} is {named(getattr(node, name))}, not a finite number"
    if getattr(node, "_neuron_precision", None) is not None:
        return "a precision is set for it (spikingjelly's neuron precision)"
    if getattr(node, "monitor", False):
        return "set_monitor is on: it collects the states of each call"
    if getattr(node, "backend", None) == "lava":
        return "its backend is lava"
    return None


def patched(node: nn.Module) -> str | None:
    """The name of a method that was replaced on this one object, which sewsnn would not call; None if there is none."""
    return next((name for name in vars(node) if callable(getattr(type(node), name, None))), None)


#: what a class derived from a node may define without changing what the node computes
_HARMLESS = {
    *("__init__", "extra_repr", "__repr__", "__str__", "supported_backends", "__module__", "__qualname__", "__doc__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__firstlineno__", "__static_attributes__", "__dict__"),
    *("__weakref__", "__parameters__", "__orig_bases__", "__classcell__", "__annotations_cache__"),
    *("__abstractmethods__", "_abc_impl"),
}


def own_dynamics(kind: type, known: type) -> str:
    """Names what a class derived from ``known`` defines itself and might change the neuron; empty if nothing does.

    It may override ``__init__`` and ``extra_repr``. Any other name counts: SpikingJelly calls methods by name that its
    own classes lack.
    """
    for base in kind.__mro__:
        if base in known.__mro__:
            continue
        for name in vars(base):
            if name not in _HARMLESS:
                return f"{base.__name__}.{name}"
    return ""
