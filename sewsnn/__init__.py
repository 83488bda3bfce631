"""sewsnn: fused multi-step spiking neurons and SEW ResNets for PyTorch.

>>> import torch, sewsnn
>>> node = sewsnn.neuron.LIFNode(tau=2.0)
>>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...]
"""

from sewsnn import analysis, convert, data, functional, layers, models, neuron, surrogate
from sewsnn.ops.load import BackendError, BackendWarning

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "BackendWarning",
    "__version__",
    "analysis",
    "convert",
    "data",
    "functional",
    "layers",
    "models",
    "neuron",
    "surrogate",
]
