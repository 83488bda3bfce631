"""Spiking neuron layers for networks.

Keyword names follow SpikingJelly; the defaults of IF, LIF and PLIF are the settings of the SEW ResNet paper.

The time axis is explicit. In multi-step mode (``step_mode="m"``) a node takes ``[T, N, ...]`` and starts at rest in
every call, unless ``keep_state=True``. In single-step mode (``step_mode="s"``) it takes one time-step ``[N, ...]`` and
keeps its membrane potential from call to call until ``reset()``.

>>> import torch, sewsnn
>>> spikes = sewsnn.neuron.LIFNode(tau=2.0)(torch.rand(4, 8, 16))  # [T, N, ...]
"""

from sewsnn.neuron.adaptive import AdaptiveLIFNode
from sewsnn.neuron.base import BaseNode
from sewsnn.neuron.current_based import CUBALIFNode
from sewsnn.neuron.integer import ILIFNode
from sewsnn.neuron.integrate_fire import IFNode, QIFNode
from sewsnn.neuron.leaky import LIFNode, ParametricLIFNode

__all__ = [
    "AdaptiveLIFNode",
    "BaseNode",
    "CUBALIFNode",
    "IFNode",
    "ILIFNode",
    "LIFNode",
    "ParametricLIFNode",
    "QIFNode",
]
