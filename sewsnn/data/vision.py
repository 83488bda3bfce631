"""torchvision, which only ImageNet needs: nothing else may import it."""

import importlib
import re
import sys
from types import ModuleType

import torch

from sewsnn.errors import UserError

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MOST = 32  # operators in torchvision's own library; more than are described on the Python side
_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library


def transforms() -> ModuleType:
    """``torchvision.transforms.v2``.

    torchvision's wheel holds a library that was linked to the CUDA build of torch. Beside a CPU-only torch it does not
    load, its operators (``torchvision::nms`` ...) are missing, and importing torchvision fails where it describes
    their results, though no transform calls one. Those it asks for are then declared, without any code behind them.

    Raises:
        UserError: torchvision or Pillow is not installed, or does not fit this torch.
    """
    for _ in range(_MOST):
        missing = _import()
        if not isinstance(missing, str):
            return missing
        _forget()
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{missing}() -> ()")
        _declared.append(library)
    raise UserError(f"data: torchvision cannot be imported: {_MOST} operators are missing; {_advice()}")


def _import() -> ModuleType | str:
    """The module, or the name of the operator it misses."""
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except ImportError as error:
        if error.name in ("torchvision", "PIL"):
            raise UserError(f"data: imagenet needs torchvision and Pillow: {_advice()}") from None
        raise UserError(f"data: torchvision cannot be imported: {error}; {_advice()}") from error
    except RuntimeError as error:
        if missing := _MISSING.search(str(error)):
            return missing[1]
        raise UserError(f"data: torchvision cannot be imported: {error}; {_advice()}") from error


def _advice() -> str:
    """torch's version is in it since pip would exchange torch for that of the newest torchvision."""
    return f"pip install 'sewsnn[imagenet]' torch=={torch.__version__.partition('+')[0]}"


def _forget() -> None:
    """What a failed import left behind."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]
