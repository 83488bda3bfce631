"""Layers that fuse what stands between two convolutions of a spiking network."""

from sewsnn.layers.bn_neuron import BNNeuron, bn_neuron

__all__ = ["BNNeuron", "bn_neuron"]
