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
    states = [(node, node.v, node.v_seq) for node in model.modules() if isinstance(node, BaseNode)]
    hooks = []
    model.eval()
    for node, _, _ in states:
        node.reset()
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for node, v, v_seq in states:
            node.v, node.v_seq = v, v_seq
        for module, training in modes:
            module.training = training
