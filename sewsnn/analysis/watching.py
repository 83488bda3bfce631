"""Running a model to look at it, and leaving it as it was."""

import contextlib
from collections.abc import Iterator

from torch import nn

from sewsnn.neuron import BaseNode


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[list]:
    """In evaluation mode, the neurons at rest. Afterwards every module is in the mode it was in, every node has its
    state back, and the hooks put into the list this yields are gone."""
    modes = [(module, module.training) for module in model.modules()]
    nodes = [module for module in model.modules() if isinstance(module, BaseNode)]
    # Converted nodes of SpikingJelly 0.0.0.0.14 have no v_seq unless they store it.
    states = [(node, {name: getattr(node, name) for name in ("v", "v_seq") if hasattr(node, name)}) for node in nodes]
    hooks = []
    model.eval()
    for node in nodes:
        node.reset()
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for node, state in states:
            for name, value in state.items():
                setattr(node, name, value)
        for module, training in modes:
            module.training = training
