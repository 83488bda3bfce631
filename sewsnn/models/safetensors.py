"""Reads and writes files of the package safetensors, if it is installed. Such a file holds only tensors by name.

The format has no checksum. Files that sewsnn writes contain one in their metadata, over names, dtypes, shapes and
values. Programs that do not know the checksum can still read the files.
"""

import json
import os
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from sewsnn.errors import CheckpointError, DamagedError, UserError, out_of_memory
from sewsnn.files import UNCHECKED, Tensors, cannot_read, open_regular

_ENDING = ".safetensors"
_CHECKSUM = "sewsnn.crc32"  # CRC-32 in hexadecimal digits


def is_one(path: str | os.PathLike) -> bool:
    """Returns whether the name of the file ends in ``.safetensors``."""
    return str(path).endswith(_ENDING)


def read(path: str | os.PathLike) -> Tensors:
    """The tensors of the file by their names, on the CPU.

    Raises:
        DamagedError: the file is damaged.
        CheckpointError: the package or the file is missing, or the file cannot be read now; the message names it.
    """
    load = _package(path, CheckpointError).load
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise CheckpointError(f"the checkpoint {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise cannot_read(f"the checkpoint {path}", error) from None
    try:
        state = load(data)
        length = int.from_bytes(data[:8], "little")
        written = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_CHECKSUM)
    except Exception as error:  # safetensors' own class, or KeyError for a dtype that torch does not have
        if out_of_memory(error):
            raise CheckpointError(f"too little memory to load the checkpoint {path}") from None
        reason = f"torch has no dtype {error}" if isinstance(error, KeyError) else error
        raise DamagedError(
            f"{path} is not a readable checkpoint (truncated, damaged, or not written by safetensors): {reason}"
        ) from None
    if written is not None and written != _checksum(state):
        raise DamagedError(
            f"{path} is damaged, or another program changed its tensors and kept the old checksum: the tensors do not "
            f"match {_CHECKSUM} in its metadata"
        )
    return Tensors(state, f"{path} {UNCHECKED}" if written is None else "")


def write(path: str | os.PathLike, state: Mapping[str, Tensor]) -> bytes:
    """The content of a file of these tensors, with the CRC-32 of names, dtypes, shapes and values in its metadata.

    Raises:
        UserError: the package is missing.
    """
    return _package(path, UserError).save(dict(state), metadata={"format": "pt", _CHECKSUM: _checksum(state)})


def _checksum(state: Mapping[str, Tensor]) -> str:
    crc = 0
    for name, value in sorted(state.items()):
        crc = zlib.crc32(repr((name, str(value.dtype), tuple(value.shape))).encode(errors="surrogatepass"), crc)
        crc = zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def _package(path: str | os.PathLike, error: type[UserError]):
    try:
        import safetensors.torch as package
    except ImportError:
        raise error(f"{path} needs the package safetensors: pip install safetensors") from None
    return package
