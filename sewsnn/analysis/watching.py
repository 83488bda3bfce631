"""Runs a model under observation and restores it afterwards."""

import contextlib
from collections.abc import Iterator

from torch import nn

from sewsnn.neuron import BaseNode
from sewsnn.neuron.state import MARKS


def _has_memory(module: nn.Module) -> bool:
    return isinstance(vars(module).get("_memories"), dict) and callable(getattr(module, "reset", None))


def rest(model: nn.Module, whole_sequences: bool = False) -> None:
    """Puts all neurons to rest, including nodes that are still SpikingJelly's.

    With ``whole_sequences`` it resets only the nodes that take all time-steps in one call and that are not set to keep
    their state.
    """
    for module in model.modules():
        if isinstance(module, BaseNode) or _has_memory(module):
            goes_on = getattr(module, "step_mode", "s") == "s" or getattr(module, "keep_state", None)
            if not (whole_sequences and goes_on):
                module.reset()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[list]:
    """Puts the model in evaluation mode with its neurons at rest, and restores it afterwards.

    Afterwards every module is in its former mode; every node, and every other module with memories as in SpikingJelly,
    has its former state; and the hooks in the list that this context yields are removed.
    """
    modes = [(module, module.training) for module in model.modules()]
    nodes = [module for module in model.modules() if isinstance(module, BaseNode)]
    # Converted nodes of SpikingJelly 0.0.0.0.14 have no v_seq unless they store it.
    states = [(node, {n: getattr(node, n) for n in (*node.state_names, "v_seq") if hasattr(node, n)}) for node in nodes]
    marks = [{name: vars(node)[name] for name in MARKS if name in vars(node)} for node in nodes]
    memories = [(module, dict(module._memories)) for module in model.modules() if _has_memory(module)]
    hooks = []
    model.eval()
    rest(model)
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for node, state in states:
            for name, value in state.items():
                setattr(node, name, value)
        for module, memory in memories:
            module._memories.clear()
            module._memories.update(memory)
        for node, mark in zip(nodes, marks, strict=True):
            for name in MARKS:
                vars(node).pop(name, None)
            vars(node).update(mark)
        for module, training in modes:
            module.training = training
