"""The classes of SpikingJelly's neurons that can be converted: :func:`swapped`, :func:`why_not`."""

import sys
from importlib import import_module

from torch import nn

from sewsnn.convert.bridge import Bridge
from sewsnn.convert.obstacles import obstacle, own_dynamics, patched

#: parts of SpikingJelly, each with the module of sewsnn that converts its nodes
_PARTS = {
    "spikingjelly.activation_based.neuron": "sewsnn.convert.nodes",
    "spikingjelly.clock_driven.neuron": "sewsnn.convert.clock_driven",
}
_derived: dict[type, type] = {}


def known() -> dict[type, type]:
    """The classes of the parts of SpikingJelly that were imported; a model can only contain modules of these parts."""
    found = {}
    for theirs, ours in _PARTS.items():
        if theirs in sys.modules:
            found.update(import_module(ours).CLASSES)
    return found


def modules() -> list:
    """SpikingJelly's modules of neurons that were imported."""
    return [sys.modules[name] for name in _PARTS if name in sys.modules]


def _base(kind: type) -> type | None:
    """The class of SpikingJelly that can be converted and from which ``kind`` derives, or which it is."""
    return next((base for base in kind.__mro__ if base in known()), None)


def swapped(kind: type) -> type:
    """The class to which a neuron of class ``kind`` is swapped."""
    base = _base(kind)
    ours = known()[base]
    if base is not kind:
        if kind not in _derived:
            names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
            _derived[kind] = type(kind.__name__, (ours, kind), names)
        ours = _derived[kind]
    if ours.__dict__.get("_theirs") is None:
        ours._theirs = kind
    return ours


def converts(module: nn.Module) -> bool:
    """Returns whether the module is a neuron of SpikingJelly that :func:`swapped` can swap now."""
    return not isinstance(module, Bridge) and _base(type(module)) is not None and why_not(module) is None


def why_not(module: nn.Module) -> str | None:
    """Why a neuron of SpikingJelly is not converted; None if it is, or if the module is no such neuron."""
    kind = type(module)
    base = _base(kind)
    if base is not None:
        if own := own_dynamics(kind, base):
            return f"its class derives from {base.__name__} and defines {own}, so it may compute something else"
        method = patched(module)
        return obstacle(module, known()[base].kind_name) if method is None else f"its method {method} was replaced"
    for theirs in modules():
        if isinstance(module, theirs.BaseNode) or (
            kind.__module__.startswith(theirs.__name__) and kind.__name__.endswith("Node")
        ):
            return "sewsnn has no such neuron"
    if kind.__name__.startswith("MultiStep") and hasattr(module, "v"):
        return "its class is none of SpikingJelly's that were imported (a node of an old SpikingJelly?)"
    return None


def rebuilt(kind: type) -> nn.Module:
    """A node without attributes, of the class to which ``kind`` is swapped: for copies and pickles."""
    found = swapped(kind)
    return found.__new__(found)


Bridge.rebuild = staticmethod(rebuilt)
