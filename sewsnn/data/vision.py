"""Imports torchvision. Only ImageNet needs it, so no other module may import torchvision."""

import importlib
import re
import sys
from types import ModuleType

import torch

from sewsnn.errors import UserError

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MOST = 32  # limit of operators to declare; torchvision's Python code describes fewer
_declared: list[torch.library.Library] = []  # a declaration ends with its Library object


def transforms() -> ModuleType:
    """Returns ``torchvision.transforms.v2``.

    The wheel of torchvision contains a library that is linked to the CUDA build of torch. With a CPU-only torch that
    library does not load, its operators (``torchvision::nms``, ...) are missing, and importing torchvision fails where
    it describes their results, although no transform calls them. This function then declares the missing operators
    without an implementation.

    Raises:
        UserError: torchvision or Pillow is not installed, or does not match this torch.
    """
    for _ in range(_MOST):
        missing = _import()
        if not isinstance(missing, str):
            return missing
        _forget()
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{missing}() -> ()")
        _declared.append(library)
    raise UserError(f"data: torchvision cannot be imported: {_MOST} operators are missing. Run {_advice()}")


def _import() -> ModuleType | str:
    """Returns the module, or the name of the operator that it misses."""
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except ImportError as error:
        if error.name in ("torchvision", "PIL"):
            raise UserError(f"data: imagenet needs torchvision and Pillow. Run {_advice()}") from None
        raise UserError(f"data: torchvision cannot be imported: {error}. Run {_advice()}") from error
    except RuntimeError as error:
        if missing := _MISSING.search(str(error)):
            return missing[1]
        raise UserError(f"data: torchvision cannot be imported: {error}. Run {_advice()}") from error


def _advice() -> str:
    """Returns the command to install torchvision. It pins torch, because pip would otherwise replace torch by the
    version for the newest torchvision."""
    return f"pip install 'sewsnn[imagenet]' torch=={torch.__version__.partition('+')[0]}"


def _forget() -> None:
    """Removes the modules that a failed import left behind."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]
