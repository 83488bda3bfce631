"""Layers that fuse the operations between two convolutions of a spiking network into one op.

>>> import torch, sewsnn
>>> layer = sewsnn.layers.BNNeuron(8)  # batch norm + IF neuron in one op
>>> spikes = layer(torch.randn(4, 2, 8, 16, 16))  # [T, N, C, H, W]
"""

from sewsnn.layers.fold_batchnorm import fuse
from sewsnn.layers.fused import bn_neuron
from sewsnn.layers.modules import BNNeuron, NeuronConnection
from sewsnn.layers.packed_conv import conv_over_time, over_time
from sewsnn.layers.stem import bn_neuron_pool
from sewsnn.layers.sync import convert_sync_batchnorm

__all__ = [
    "BNNeuron",
    "NeuronConnection",
    "bn_neuron",
    "bn_neuron_pool",
    "conv_over_time",
    "convert_sync_batchnorm",
    "fuse",
    "over_time",
]
