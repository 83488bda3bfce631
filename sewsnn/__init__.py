"""sewsnn: fused multi-step spiking neurons and SEW ResNets for PyTorch.

>>> import torch, sewsnn
>>> node = sewsnn.neuron.LIFNode(tau=2.0)
>>> spikes = node(torch.rand(4, 8, 16))  # [T, N, ...]
"""

import importlib as _importlib
import sys as _sys
from pathlib import PurePath as _PurePath

from sewsnn.errors import SettingError as _SettingError

try:
    from sewsnn.ops import load as _load  # noqa: F401, first: it checks the environment
except _SettingError as error:
    # The command line prints such errors in one line, but it is not imported yet.
    if _PurePath(_sys.argv[0]).name == "sewsnn" or (_sys.argv[0] == "-m" and "sewsnn.cli" in _sys.orig_argv):
        raise SystemExit(f"sewsnn: error: {error}") from None
    raise

from sewsnn import analysis, convert, data, functional, layers, models, neuron, surrogate
from sewsnn.ops.load import BackendError, BackendWarning
from sewsnn.version import __version__

__all__ = [
    "BackendError",
    "BackendWarning",
    "__version__",
    "analysis",
    "convert",
    "data",
    "export",
    "functional",
    "layers",
    "models",
    "neuron",
    "surrogate",
    "train",
]

_LAZY = ("export", "train")  # imported at first use, because most programs that train a network do not need them


def __getattr__(name: str):
    if name in _LAZY:
        return _importlib.import_module(f"sewsnn.{name}")
    raise AttributeError(f"module 'sewsnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
