"""Spiking neuron layers for networks.

Keyword names follow SpikingJelly; the defaults of IF, LIF and PLIF are the settings of the SEW ResNet paper.

The time axis is explicit. In multi-step mode (``step_mode="m"``) a node takes ``[T, N, ...]`` and starts at rest in
every call, unless ``keep_state=True``. In single-step mode (``step_mode="s"``) it takes one time-step ``[N, ...]`` and
keeps its membrane potential from call to call until ``reset()``.

>>> import torch, sewsnn
>>> spikes = sewsnn.neuron.LIFNode(tau=2.0)(torch.rand(4, 8, 16))  # [T, N, ...]
"""

from sewsnn.neuron import adaptive, base, current_based, integer, integrate_fire, leaky
from sewsnn.neuron.adaptive import *
from sewsnn.neuron.base import *
from sewsnn.neuron.current_based import *
from sewsnn.neuron.integer import *
from sewsnn.neuron.integrate_fire import *
from sewsnn.neuron.leaky import *

__all__ = []
__all__ += adaptive.__all__
__all__ += base.__all__
__all__ += current_based.__all__
__all__ += integer.__all__
__all__ += integrate_fire.__all__
__all__ += leaky.__all__
