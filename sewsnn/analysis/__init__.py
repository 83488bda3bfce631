"""Firing rates, operation counts and figures of networks.

>>> import torch, sewsnn
>>> net = sewsnn.models.create_model("sew_cifar10_net")
>>> found = sewsnn.analysis.count_operations(net, torch.rand(2, 3, 32, 32))
"""

from sewsnn.analysis.firing import firing_rates
from sewsnn.analysis.operations import LayerOperations, Operations, count_operations

__all__ = ["LayerOperations", "Operations", "count_operations", "firing_rates"]
