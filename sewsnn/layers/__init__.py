"""Layers that fuse what stands between two convolutions of a spiking network."""

from sewsnn.layers.bn_neuron import BNNeuron, bn_neuron
from sewsnn.layers.fuse import fuse
from sewsnn.layers.packed import conv_over_time, over_time
from sewsnn.layers.sync import convert_sync_batchnorm

__all__ = ["BNNeuron", "bn_neuron", "conv_over_time", "convert_sync_batchnorm", "fuse", "over_time"]
