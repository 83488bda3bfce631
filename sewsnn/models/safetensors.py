"""Files of the package safetensors, where it is there: tensors by name, nothing else."""

import json
import os
import struct
import zlib
from collections.abc import Mapping

from torch import Tensor

from sewsnn.errors import CheckpointError, DamagedError, UserError, out_of_memory
from sewsnn.files import open_regular

_ENDING = ".safetensors"
_KEY = "sewsnn_crc32"  # in the metadata of files written here
_LENGTH = struct.Struct("<Q")  # of the header, which the file begins with


def is_one(path: str | os.PathLike) -> bool:
    """By its name."""
    return str(path).endswith(_ENDING)


def read(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors in the file, on the CPU. The format has no checksum; files that :func:`write` made carry one.

    Raises:
        DamagedError: the file is damaged, as far as that can be known.
        CheckpointError: the package or the file is missing, or it cannot be read; names it.
    """
    load = _package(path, CheckpointError).load
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    try:
        tensors, said = load(data), _header(data).get("__metadata__", {}).get(_KEY)
    except Exception as error:  # its own class, and KeyError for a dtype that torch does not have
        if out_of_memory(error):  # the file may be whole
            raise
        raise DamagedError(
            f"{path} is not a readable checkpoint (truncated, damaged, or not written by safetensors): {error}"
        ) from None
    if said is not None and said != _checksum(data):
        raise DamagedError(f"{path} is damaged: its bytes do not have the checksum that was written with them")
    return tensors


def write(path: str | os.PathLike, state: Mapping[str, Tensor]) -> bytes:
    """The content of a file of these tensors, with the CRC-32 of names, shapes and bytes among its metadata.

    Raises:
        UserError: the package is missing.
    """
    place = "0" * 8
    data = _package(path, UserError).save(dict(state), metadata={"format": "pt", _KEY: place})
    return data.replace(f'"{_KEY}":"{place}"'.encode(), f'"{_KEY}":"{_checksum(data)}"'.encode(), 1)


def _header(data: bytes) -> dict:
    (length,) = _LENGTH.unpack_from(data)
    return json.loads(data[_LENGTH.size : _LENGTH.size + length])


def _checksum(data: bytes) -> str:
    (length,) = _LENGTH.unpack_from(data)
    entries = {name: entry for name, entry in _header(data).items() if name != "__metadata__"}
    crc = zlib.crc32(json.dumps(entries, sort_keys=True).encode())
    return f"{zlib.crc32(memoryview(data)[_LENGTH.size + length :], crc):08x}"


def _package(path: str | os.PathLike, error: type[UserError]):
    try:
        import safetensors.torch as package
    except ImportError:
        raise error(f"{path} needs the package safetensors: pip install safetensors") from None
    return package
