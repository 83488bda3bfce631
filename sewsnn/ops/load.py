"""Loads the compiled library and answers which backend can run where."""

import ctypes
import logging
import os
import warnings
from pathlib import Path

import torch

from sewsnn.errors import SettingError

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
    if torch._C._dispatch_has_kernel("sewsnn::neuron_forward") and not _is_loaded():
        # torch ends a process that registers the same ops twice.
        return f"another copy of sewsnn's compiled library is loaded already; {LIBRARY} must be the only one"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    return None


def _is_loaded() -> bool:
    """Whether this process has the library already: sewsnn is imported for a second time."""
    try:
        ctypes.CDLL(str(LIBRARY), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return True


def _ask(name: str, *arguments) -> tuple[int, str] | None:
    """What a C function of the library answers: its number, and the text it writes. None where the library has no such
    function: it is older, or for the CPU alone."""
    function = getattr(ctypes.CDLL(str(LIBRARY)), name, None)
    if function is None:
        return None
    text = ctypes.create_string_buffer(1024)
    return function(*arguments, text, len(text)), text.value.decode(errors="replace")


def _instruction_set() -> str | None:
    """That of the CPU kernels, after the check of the variables that they read; None: the library does not say.

    Raises:
        SettingError: SEWSNN_CPU or SEWSNN_CPU_KEEP_MB is wrong.
    """
    answer = None if NATIVE_ERROR else _ask("sewsnn_settings")
    if answer is None:
        return None
    wrong, text = answer
    if wrong:
        raise SettingError(" ".join(text.split()))
    return text


NATIVE_ERROR = _load()
INSTRUCTION_SET = _instruction_set()
#: device types the compiled library has kernels for
NATIVE_DEVICES = tuple(
    device
    for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
    if NATIVE_ERROR is None and torch._C._dispatch_has_kernel_for_dispatch_key("sewsnn::neuron_forward", key)
)
_announced: set[str] = set()
_cuda_problems: dict[int, str | None] = {}


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


def cuda_problem(index: int | None) -> str | None:
    """Why the compiled CUDA kernels cannot run on this GPU: its driver is too old for them, or they were not compiled
    for it. None if they can. Asked once for each GPU; ``None``: torch's current one."""
    if index is None:
        index = torch.cuda.current_device()
    if index not in _cuda_problems:
        answer = _ask("sewsnn_cuda_problem", index)
        _cuda_problems[index] = f"cuda:{index}: {answer[1]}" if answer and answer[0] else None
    return _cuda_problems[index]


# torch.compile calls it while it traces, and takes the answer for a constant. (What the decorator of torch.compiler
# does, without its import of the compiler, which takes a second.)
cuda_problem._dynamo_marked_constant = True


def why_not_native(device: torch.device | str, surrogate) -> str | None:
    """Why the compiled kernels cannot run on this device with this surrogate; None if they can. Of a device's type
    alone ("cuda") it is answered whether there are kernels."""
    if NATIVE_ERROR is not None:
        return NATIVE_ERROR
    device_type = device if isinstance(device, str) else device.type
    if device_type not in (*NATIVE_DEVICES, "meta"):  # shapes alone: the ops' fake kernels
        hint = " (it was built without nvcc)" if device_type == "cuda" else ""
        return f"the compiled library has no kernels for {device_type}{hint}"
    if device_type == "cuda" and not isinstance(device, str):
        problem = cuda_problem(device.index)
        if problem is not None:
            return f"the compiled kernels cannot run on {problem}"
    if getattr(surrogate, "kind", None) is None:
        return f"the surrogate {type(surrogate).__name__} has no compiled form"
    return None


def resolve_backend(backend: str, device: torch.device | str, surrogate) -> str:
    """The backend that will run on this device (or type of device): ``"native"`` or ``"torch"``.

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
    reason = why_not_native(device, surrogate)
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
