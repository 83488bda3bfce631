"""Firing rates."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sewsnn.analysis.watching import evaluating, rest
from sewsnn.neuron import BaseNode


@torch.no_grad()
def firing_rates(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Mean number of spikes per neuron and time-step of every neuron layer, over all ``batches``, in evaluation mode.
    The model is left as it was: the mode of every module, the neurons' states, its hooks.

    Returns:
        ``{module name: rate in [0, 1]}`` in the order of the modules.
    """
    spikes: dict[str, Tensor] = {}
    elements: dict[str, int] = {}

    def counter(name):
        def hook(module, inputs, s_seq):
            spikes[name] = spikes.get(name, 0) + s_seq.sum(dtype=torch.float64)
            elements[name] = elements.get(name, 0) + s_seq.numel()

        return hook

    nodes = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseNode)]
    with evaluating(model) as hooks:
        hooks += [module.register_forward_hook(counter(name)) for name, module in nodes]
        for x in batches:
            rest(model, whole_sequences=True)  # SpikingJelly's go on from where they were
            model(x)
    return {name: float(spikes[name]) / elements[name] for name, _ in nodes if elements.get(name)}
