"""Loads the compiled library and decides which backend can run on which device."""

import ctypes
import logging
import os
import warnings
from pathlib import Path

import torch

from sewsnn.errors import SettingError

logger = logging.getLogger("sewsnn")

BACKENDS = ("auto", "native", "cupy", "torch")
#: the compiled library; the environment variable SEWSNN_LIBRARY selects another file
LIBRARY = Path(os.environ.get("SEWSNN_LIBRARY") or Path(__file__).parent.parent / "_native" / "libsewsnn.so")


class BackendError(RuntimeError):
    """You asked for a backend by name, and it cannot run here; the message says why."""


class BackendWarning(UserWarning):
    """``backend="auto"`` fell back to a slower backend. Each reason is reported once."""


def _load() -> str | None:
    """Loads the library. Returns None, or the reason why it cannot be loaded."""
    if not LIBRARY.is_file():
        if os.environ.get("SEWSNN_LIBRARY"):
            return f"SEWSNN_LIBRARY names {LIBRARY}, but there is no such file"
        return f"the compiled library is missing ({LIBRARY.name} is not in {LIBRARY.parent}); reinstall sewsnn"
    if torch._C._dispatch_has_kernel("sewsnn::neuron_forward") and not _is_loaded():
        # torch ends a process that registers the same ops twice.
        return f"another copy of sewsnn's compiled library is loaded already; {LIBRARY} must be the only one"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    if not hasattr(ctypes.CDLL(str(LIBRARY)), "sewsnn_registry"):
        return f"{LIBRARY} was built from other sources than this version of sewsnn; build it again"
    return None


def _is_loaded() -> bool:
    """Returns whether this process has already loaded the library, because sewsnn is imported a second time."""
    try:
        ctypes.CDLL(str(LIBRARY), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return True


def ask_library(name: str, *arguments) -> tuple[int, str] | None:
    """Calls a C function of the library and returns its number and the text it writes.

    None: the library does not have this function, because it was built without CUDA.
    """
    function = getattr(ctypes.CDLL(str(LIBRARY)), name, None)
    if function is None:
        return None
    text = ctypes.create_string_buffer(4096)
    return function(*arguments, text, len(text)), text.value.decode(errors="replace")


def _instruction_set() -> str | None:
    """The instruction set of the CPU kernels, after a check of the environment variables they read; None: unknown.

    Raises:
        SettingError: SEWSNN_CPU or SEWSNN_CPU_KEEP_MB has an invalid value.
    """
    answer = None if NATIVE_ERROR else ask_library("sewsnn_settings")
    if answer is None:
        return None
    wrong, text = answer
    if wrong:
        raise SettingError(" ".join(text.split()))
    return text


NATIVE_ERROR = _load()
INSTRUCTION_SET = _instruction_set()
#: device types for which the compiled library has kernels
NATIVE_DEVICES = tuple(
    device
    for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
    if NATIVE_ERROR is None and torch._C._dispatch_has_kernel_for_dispatch_key("sewsnn::neuron_forward", key)
)
_announced: set[str] = set()
_cuda_problems: dict[int, str | None] = {}


def library_hash() -> str | None:
    """The hash of the sources from which the library was built (cmake/csrc_hash.py); None without a library."""
    if NATIVE_ERROR is not None:
        return None
    library = ctypes.CDLL(str(LIBRARY))
    try:
        text = (ctypes.c_char * 13).in_dll(library, "sewsnn_csrc")
    except ValueError:
        return None  # the library was built before the hash existed
    return text.value.decode()


def cuda_problem(index: int | None) -> str | None:
    """Why the compiled CUDA kernels cannot run on this GPU; None if they can.

    The driver may be too old for them, or they may not be compiled for this GPU. The library is asked once per GPU.
    ``index`` None means torch's current GPU.
    """
    if index is None:
        index = torch.cuda.current_device()
    if index not in _cuda_problems:
        answer = ask_library("sewsnn_cuda_problem", index)
        _cuda_problems[index] = f"cuda:{index}: {answer[1]}" if answer and answer[0] else None
    return _cuda_problems[index]


# torch.compile calls cuda_problem while it traces and treats the answer as a constant. (The decorator of torch.compiler
# does the same, but it imports the compiler, which takes a second.)
cuda_problem._dynamo_marked_constant = True


def why_not_native(device: torch.device | str, surrogate, missing: str | None = None) -> str | None:
    """Why the compiled kernels cannot run on this device with this surrogate; None if they can.

    For a device type alone (``"cuda"``) the answer says only whether the library has kernels for it. ``missing``: why
    the library cannot compute the neuron at all (:attr:`sewsnn.ops.spec.NeuronSpec.missing`). Default None: it can.
    """
    if NATIVE_ERROR is not None:
        return NATIVE_ERROR
    device_type = device if isinstance(device, str) else device.type
    if device_type not in NATIVE_DEVICES and device_type != "meta":  # "meta" has shapes only: the fake kernels run
        hint = " (it was built without nvcc)" if device_type == "cuda" else ""
        return f"the compiled library has no kernels for {device_type}{hint}"
    if device_type == "cuda" and not isinstance(device, str):
        problem = cuda_problem(device.index)
        if problem is not None:
            return f"the compiled kernels cannot run on {problem}"
    if getattr(surrogate, "kind", None) is None:
        return f"the surrogate {type(surrogate).__name__} has no compiled form"
    return missing


def check_backend(backend: str) -> str:
    """Returns the name of a backend if this version has that backend.

    Raises:
        ValueError: ``backend`` is not one of ``BACKENDS``.
        BackendError: ``backend`` is ``"cupy"``, which this version does not have.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "cupy":
        raise BackendError(
            "backend='cupy' cannot run: this version of sewsnn does not compile its kernels at run time; use 'native'"
        )
    return backend


def resolve_backend(backend: str, device: torch.device | str, surrogate, missing: str | None = None) -> str:
    """The backend that will run on this device or device type: ``"native"`` or ``"torch"``.

    The other arguments are those of :func:`why_not_native`.

    Raises:
        ValueError: ``backend`` is not one of ``BACKENDS``.
        BackendError: you asked for a backend that cannot run here.
    """
    if check_backend(backend) == "torch":
        return "torch"
    reason = why_not_native(device, surrogate, missing)
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
    cpu = f"cpu ({INSTRUCTION_SET})" if INSTRUCTION_SET else "cpu"
    devices = ", ".join(cpu if device == "cpu" else device for device in NATIVE_DEVICES)
    native = NATIVE_ERROR or f"kernels for {devices}, built from sources {library_hash()}"
    return {"native": native, "cupy": "not in this version", "torch": "the reference, any device"}
