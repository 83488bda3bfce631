"""Firing rates of neuron layers."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sewsnn.analysis.watching import evaluating, rest
from sewsnn.neuron import BaseNode


@torch.no_grad()
def firing_rates(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Mean number of spikes per neuron and time-step of every neuron layer, over all batches, in evaluation mode.

    The model is restored afterwards: the mode of every module, the states of the neurons, the hooks.

    Args:
        model: a network with nodes of :mod:`sewsnn.neuron`.
        batches: inputs with which the model is called, one after the other.

    Returns:
        ``{module name: rate}`` in the order of the modules. A rate is in [0, 1]; that of an
        :class:`sewsnn.neuron.ILIFNode` is in [0, D], or with ``normalize=True`` the share of D.

    Example:
        >>> net = sewsnn.models.create_model("sew_cifar10_net")
        >>> rates = firing_rates(net, [torch.rand(2, 3, 32, 32)])
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
            rest(model, whole_sequences=True)  # converted SpikingJelly nodes would continue from the last batch's state
            model(x)
    return {name: float(spikes[name]) / elements[name] for name, _ in nodes if elements.get(name)}
