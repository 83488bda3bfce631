"""Training: configuration, training loop, checkpoints and metrics."""

import importlib
import importlib.util

#: name -> the module that has it; imported when it is first used
_LAZY = {"Config": "config", "load_config": "config", "train": "loop"}
__all__ = ["Config", "load_config", "train"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"sewsnn.train.{_LAZY[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"sewsnn.train.{name}"):
        return importlib.import_module(f"sewsnn.train.{name}")
    raise AttributeError(f"module 'sewsnn.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
