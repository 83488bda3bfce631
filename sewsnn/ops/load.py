"""Loads the compiled library and answers which backend can run where."""

import ctypes
import logging
import os
import warnings
from pathlib import Path

import torch

logger = logging.getLogger("sewsnn")

BACKENDS = ("auto", "native", "cupy", "torch")
#: the compiled library; SEWSNN_LIBRARY names another one, built elsewhere for instance
LIBRARY = Path(os.environ.get("SEWSNN_LIBRARY") or Path(__file__).parent.parent / "_native" / "libsewsnn.so")


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


class BackendWarning(UserWarning):
    """``auto`` fell back to a slower backend. Given once per reason."""


def _load() -> str | None:
    """Loads the library; None, or why it could not be."""
    if not LIBRARY.is_file():
        if os.environ.get("SEWSNN_LIBRARY"):
            return f"SEWSNN_LIBRARY names {LIBRARY}, which is not there"
        return f"the compiled library is missing ({LIBRARY.name} is not in {LIBRARY.parent}); reinstall sewsnn"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    return None


NATIVE_ERROR = _load()
#: device types the compiled library has kernels for
NATIVE_DEVICES = tuple(
    device
    for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
    if NATIVE_ERROR is None and torch._C._dispatch_has_kernel_for_dispatch_key("sewsnn::neuron_forward", key)
)
_announced: set[str] = set()


def library_hash() -> str | None:
    """The hash of the sources the library was built from (cmake/csrc_hash.py); None without a library."""
    if NATIVE_ERROR is not None:
        return None
    library = ctypes.CDLL(str(LIBRARY))
    try:
        text = (ctypes.c_char * 13).in_dll(library, "sewsnn_csrc")
    except ValueError:
        return None  # older than this
    return text.value.decode()


def why_not_native(device_type: str, surrogate) -> str | None:
    """Why the compiled kernels cannot run on this device with this surrogate; None if they can."""
    if NATIVE_ERROR is not None:
        return NATIVE_ERROR
    if device_type not in (*NATIVE_DEVICES, "meta"):  # shapes alone: the ops' fake kernels
        hint = " (it was built without nvcc)" if device_type == "cuda" else ""
        return f"the compiled library has no kernels for {device_type}{hint}"
    if getattr(surrogate, "kind", None) is None:
        return f"the surrogate {type(surrogate).__name__} has no compiled form"
    return None


def resolve_backend(backend: str, device_type: str, surrogate) -> str:
    """The backend that will run: ``"native"`` or ``"torch"``.

    Raises:
        ValueError: ``backend`` is not one of ``BACKENDS``.
        BackendError: the backend asked for cannot run here.
    """
    if backend == "torch":
        return "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "cupy":
        raise BackendError(
            "backend='cupy' cannot run: this version of sewsnn does not compile its kernels at run time; use 'native'"
        )
    reason = why_not_native(device_type, surrogate)
    if reason is None:
        return "native"
    if backend == "native":
        raise BackendError(f"backend='native' cannot run: {reason}")
    if not torch.compiler.is_compiling():
        _announce(reason)
    return "torch"


def _announce(reason: str) -> None:
    if reason not in _announced:
        _announced.add(reason)
        warnings.warn(f"sewsnn runs on the slower torch backend: {reason}", BackendWarning, stacklevel=4)


def describe_backends() -> dict[str, str]:
    """One line per backend, for ``sewsnn info``."""
    native = NATIVE_ERROR or f"kernels for {', '.join(NATIVE_DEVICES)}, built from sources {library_hash()}"
    return {"native": native, "cupy": "not in this version", "torch": "the reference, any device"}
