"""Locates the layer where a loss or a gradient becomes infinite or NaN."""

import math
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from sewsnn.errors import UserError


class NonFinite(UserError):
    """The loss or a gradient is infinite or NaN. The run has stopped; its checkpoints are unchanged."""


def bad_entries(model: nn.Module) -> Iterator[str]:
    """Yields the names of parameters and statistics that hold an infinite or NaN value."""
    return (name for name, tensor in model.state_dict().items() if not _is_finite(tensor))


def find(
    model: nn.Module, x: Tensor, y: Tensor, run: Callable[[Tensor, Tensor], Tensor], largest: float = math.inf
) -> str | None:
    """Finds the first place, in the order of computation, with an infinite or NaN value.

    Args:
        model: the network as trained. Its running statistics are not usable afterwards. Batch statistics are those of
            this process alone, because not all processes may call this function.
        x: the batch.
        y: its labels.
        run: computes the loss of a batch by calling ``model``.
        largest: limit of the absolute output of a layer (default: infinity). A larger output counts as not finite,
            because its square overflows.

    Returns:
        A description of the place; None if all values are finite.
    """
    for name in bad_entries(model):
        return f"in the parameter or statistic {name}"
    if not _is_finite(x):
        return "in the batch itself"
    found: list[str] = []

    def watch(name: str):
        def hook(module, inputs, output):
            tensors = output if isinstance(output, tuple) else (output,)
            if not found and not all(_is_finite(t, largest) for t in tensors if isinstance(t, Tensor)):
                found.append(f"in the output of {name} ({type(module).__name__})")

        return hook

    shares = [(module, module.process_group) for module in model.modules() if getattr(module, "process_group", None)]
    for module, _ in shares:
        module.process_group = None
    leaves = [(name, module) for name, module in model.named_modules() if name and not any(module.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    model.zero_grad(set_to_none=True)
    try:
        loss = run(x, y)
        if found or not _is_finite(loss):
            return found[0] if found else "in the loss itself"
        loss.backward()
    except RuntimeError as error:  # batch norm on the CPU raises for such statistics
        if not found:
            return str(error).splitlines()[0] if "finite" in str(error) else None
        return found[0]
    finally:
        for hook in hooks:
            hook.remove()
        for module, group in shares:
            module.process_group = group
    # Backward computes the gradient of the last layer first, so search from there.
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return f"in the gradient of {name}"
    return None


def _is_finite(tensor: Tensor, largest: float = math.inf) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    most = float(tensor.detach().abs().max())  # NaN if any value is NaN
    return most <= largest and most < math.inf
