"""Layers that fuse what stands between two convolutions of a spiking network."""

from sewsnn.layers.bn_neuron import BNNeuron, bn_neuron
from sewsnn.layers.packed import conv_over_time, over_time

__all__ = ["BNNeuron", "bn_neuron", "conv_over_time", "over_time"]
