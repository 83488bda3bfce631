"""sewsnn: fused multi-step spiking neurons and SEW ResNets for PyTorch.

>>> import torch, sewsnn
>>> node = sewsnn.neuron.LIFNode(tau=2.0)
>>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...]
"""

import sys as _sys
from pathlib import PurePath as _PurePath

from sewsnn.errors import SettingError as _SettingError

try:
    from sewsnn.ops import load as _load  # noqa: F401, first: it checks the environment
except _SettingError as error:
    # The command line says it in one line, but is not there yet.
    if _PurePath(_sys.argv[0]).name == "sewsnn" or (_sys.argv[0] == "-m" and "sewsnn.cli" in _sys.orig_argv):
        raise SystemExit(f"sewsnn: error: {error}") from None
    raise

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
