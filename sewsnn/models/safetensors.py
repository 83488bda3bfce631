"""Files of the package safetensors, where it is there: tensors by name, nothing else."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sewsnn.errors import CheckpointError, UserError

_ENDING = ".safetensors"


def is_one(path: str | os.PathLike) -> bool:
    """By its name."""
    return str(path).endswith(_ENDING)


def read(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors in the file, on the CPU.

    Raises:
        CheckpointError: the package or the file is missing, or the file is damaged; names it.
    """
    load = _package(path, CheckpointError).load
    try:
        return load(Path(path).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    except Exception as error:  # its own class, and KeyError for a dtype that torch does not have
        raise CheckpointError(
            f"{path} is not a readable checkpoint (truncated, damaged, or not written by safetensors): {error}"
        ) from None


def write(path: str | os.PathLike, state: Mapping[str, Tensor]) -> bytes:
    """The content of a file of these tensors.

    Raises:
        UserError: the package is missing.
    """
    return _package(path, UserError).save(dict(state), metadata={"format": "pt"})


def _package(path: str | os.PathLike, error: type[UserError]):
    try:
        import safetensors.torch as package
    except ImportError:
        raise error(f"{path} needs the package safetensors: pip install safetensors") from None
    return package
