"""The sizes of the networks in the registry, for ``sewsnn models``."""

import torch

from sewsnn.analysis.operations import Operations, count_operations
from sewsnn.errors import UserError, by_nearness, short
from sewsnn.models import create_model, list_models
from sewsnn.models.published import task_of


def size_of(name: str, T: int = 1) -> Operations:
    """Parameters, neurons and MACs of a network for one image or sequence of its task, computed from shapes alone.

    Args:
        name: name of a network in the registry.
        T: number of time-steps. Default 1.

    Returns:
        The :class:`sewsnn.analysis.Operations` of the network, without synaptic operations.

    Raises:
        UserError: there is no such network, or its size is not fixed.
    """
    task = task_of(name)
    if task is None:
        if name in list_models():
            raise UserError(f"model {name!r} has no fixed size: its blocks and widths are arguments")
        nearest = ", ".join(by_nearness(name, list_models())[:3])
        raise UserError(f"model {short(name)} is unknown; see sewsnn models (nearest: {nearest})")
    sizes = (1, *task.input_shape) if task.still else (T, 1, *task.input_shape)
    with torch.device("meta"):
        model = create_model(name, T=T)
    return count_operations(model, torch.empty(sizes, device="meta"))


def usual_steps(name: str) -> int:
    """The smallest T of the published runs of a network; 4 if none is stated.

    Args:
        name: name of a network in the registry.

    Returns:
        A number of time-steps.
    """
    task = task_of(name)
    return min(task.steps) if task and task.steps else 4


def networks_table() -> str:
    """A table of all networks as text, one line per network.

    Returns:
        The table.
    """
    lines = [
        f"{'network':20} {'input':>13} {'parameters':>11} {'neuron layers':>14} {'neurons':>11} {'MACs / step':>15}"
    ]
    for name in list_models():
        task = task_of(name)
        if task is None:
            lines.append(f"{name:20} {'any':>13} {'any':>11}")
            continue
        found = size_of(name)
        shape = " x ".join(map(str, task.input_shape))
        lines.append(
            f"{name:20} {shape:>13} {found.parameters:>11,} {found.neuron_layers:>14} {found.neurons:>11,} "
            f"{found.macs:>15,}"
        )
    return "\n".join(lines)
