"""Running a model to look at it, and leaving it as it was."""

import contextlib
from collections.abc import Iterator

from torch import nn

from sewsnn.neuron import MARKS, BaseNode


def _has_memory(module: nn.Module) -> bool:
    return isinstance(vars(module).get("_memories"), dict) and callable(getattr(module, "reset", None))


def rest(model: nn.Module, whole_sequences: bool = False) -> None:
    """Puts all neurons to rest, those that stay SpikingJelly's too; ``whole_sequences``: those alone that are given all
    time-steps in one call, and were not told to keep their state."""
    for module in model.modules():
        if isinstance(module, BaseNode) or _has_memory(module):
            goes_on = getattr(module, "step_mode", "s") == "s" or getattr(module, "keep_state", None)
            if not (whole_sequences and goes_on):
                module.reset()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[list]:
    """In evaluation mode, the neurons at rest. Afterwards every module is in the mode it was in, every node, and what
    else has a memory as SpikingJelly's modules have, has its state back, and the hooks put into the list this yields
    are gone."""
    modes = [(module, module.training) for module in model.modules()]
    nodes = [module for module in model.modules() if isinstance(module, BaseNode)]
    # Converted nodes of SpikingJelly 0.0.0.0.14 have no v_seq unless they store it.
    states = [(node, {name: getattr(node, name) for name in ("v", "v_seq") if hasattr(node, name)}) for node in nodes]
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
