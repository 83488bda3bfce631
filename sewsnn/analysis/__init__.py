"""Firing rates, gradient norms, membrane potentials, operation counts and figures of networks.

>>> import torch, sewsnn
>>> net = sewsnn.models.create_model("sew_cifar10_net")
>>> found = sewsnn.analysis.count_operations(net, torch.rand(2, 3, 32, 32))
>>> rates = sewsnn.analysis.block_rates(net, [torch.rand(2, 3, 32, 32)])
"""

from sewsnn.analysis.blocks import BlockRate, block_rates
from sewsnn.analysis.calibration import calibrate
from sewsnn.analysis.firing import firing_rates
from sewsnn.analysis.gradients import BlockGradient, gradient_norms, predicted_norms
from sewsnn.analysis.monitor import Monitor
from sewsnn.analysis.operations import LayerOperations, Operations, count_operations
from sewsnn.analysis.potentials import Recording, record

__all__ = [
    "BlockGradient",
    "BlockRate",
    "LayerOperations",
    "Monitor",
    "Operations",
    "Recording",
    "block_rates",
    "calibrate",
    "count_operations",
    "firing_rates",
    "gradient_norms",
    "predicted_norms",
    "record",
]
