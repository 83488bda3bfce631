"""The Python half of the pretended CUDA device: loads the libraries and replaces the parts of ``torch.cuda`` that a CPU
build of torch leaves out.

``install`` must be called before torch is imported, because torch asks for its CUDA hooks once.
"""

import contextlib
import ctypes
import os
from pathlib import Path

DEVICES = 2


class Pretended:
    """The libraries of a build folder, as functions for tests."""

    def __init__(self, build: Path, kernels: bool = True):
        self._torch = ctypes.CDLL(str(build / "libpretended_torch.so"), mode=ctypes.RTLD_GLOBAL)
        import torch  # noqa: F401 - the kernels' library needs torch's, which is loaded now

        self._torch.pretended_allocated.restype = ctypes.c_int64
        self._torch.pretended_problems.restype = ctypes.c_char_p
        if not kernels:
            return
        self._kernels = ctypes.CDLL(str(build / "libpretended_kernels.so"), mode=ctypes.RTLD_GLOBAL)
        self._kernels.pretended_launches.restype = ctypes.c_int64
        self._kernels.pretended_kernels.restype = ctypes.c_char_p

    def current_device(self) -> int:
        return self._torch.pretended_device()

    def set_device(self, index: int) -> None:
        self._torch.pretended_set_device(index)

    def allocated(self, maximum: bool = False) -> int:
        """Bytes of memory in use; with ``maximum`` the most since ``reset_maximum``."""
        return self._torch.pretended_allocated(int(maximum))

    def reset_maximum(self) -> None:
        self._torch.pretended_reset_maximum()

    def forbid_waiting(self, forbid: bool) -> None:
        """With ``forbid``, everything for which the host waits is an error."""
        self._torch.pretended_forbid_waiting(int(forbid))

    def problems(self) -> str:
        """What went wrong where nothing could be raised, since the last call."""
        return self._torch.pretended_problems().decode()

    def launches(self) -> int:
        """The number of launches so far."""
        return self._kernels.pretended_launches()

    def kernels(self) -> list[str]:
        """The mangled names of the kernels launched since the last call."""
        return self._kernels.pretended_kernels(1).decode().split()

    def schedule(self, number: int) -> None:
        """The order of threads and blocks: 0 ascending, 1 descending, else shuffled with this seed."""
        self._kernels.pretended_schedule(number)


def install(build: Path, kernels: bool = True) -> Pretended:
    """Loads the device and makes ``torch.cuda`` use it. Returns it.

    Args:
        build: the folder of the libraries.
        kernels: also load the kernels and select the library of ops that calls them.
    """
    device = Pretended(build, kernels)
    if kernels:
        os.environ["SEWSNN_LIBRARY"] = str(build / "libsewsnn.so")
    import torch

    cuda = torch.cuda

    def index_of(given) -> int:
        if given is None:
            return device.current_device()
        if isinstance(given, int):
            return given
        index = torch.device(given).index
        return device.current_device() if index is None else index

    class Stream(torch.Stream):
        """``torch.cuda.Stream`` in terms of ``torch.Stream``, which works with any device guard."""

        def __new__(cls, device=None, priority=0, **kwargs):
            if kwargs:  # the stream with this id
                return super().__new__(cls, **kwargs)
            return super().__new__(cls, device=torch.device("cuda", index_of(device)), priority=priority)

        @property
        def cuda_stream(self):
            return self.native_handle

        def record_event(self, event=None):
            event = Event() if event is None else event
            event.record(self)
            return event

    class Event(torch.Event):
        """``torch.cuda.Event`` in terms of ``torch.Event``."""

        def __new__(cls, enable_timing=False, blocking=False, interprocess=False):
            return super().__new__(cls, device="cuda", enable_timing=enable_timing)

        def record(self, stream=None):
            super().record(current_stream() if stream is None else stream)

        def wait(self, stream=None):
            super().wait(current_stream() if stream is None else stream)

    def as_stream(s) -> Stream:
        return Stream(stream_id=s.stream_id, device_index=s.device_index, device_type=s.device_type)

    def current_stream(given=None):
        return as_stream(torch._C._accelerator_getStream(index_of(given)))

    def default_stream(given=None):
        return Stream(
            stream_id=0, device_index=index_of(given), device_type=torch._C._accelerator_getStream(0).device_type
        )

    def set_stream(stream):
        if stream is not None:
            torch._C._accelerator_setStream(stream)

    @contextlib.contextmanager
    def stream_context(stream):
        if stream is None:
            yield
            return
        before, device_before = current_stream(stream.device_index), device.current_device()
        set_stream(stream)
        device.set_device(stream.device_index)
        try:
            yield
        finally:
            set_stream(before)
            device.set_device(device_before)

    class DeviceContext:
        def __init__(self, given):
            self.index = index_of(given) if given is not None else -1

        def __enter__(self):
            self.before = device.current_device()
            if self.index >= 0:
                device.set_device(self.index)

        def __exit__(self, *_):
            device.set_device(self.before)

    def set_device(given):
        index = index_of(given)
        if not 0 <= index < DEVICES:
            raise RuntimeError("CUDA error: invalid device ordinal")
        device.set_device(index)

    def nothing():  # a new function each time: torch.compile's rules want different ones under different names
        return lambda *_, **__: None

    stand_ins = {
        "_lazy_init": nothing(),
        "init": nothing(),
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "device_count": lambda: DEVICES,
        "current_device": device.current_device,
        "set_device": set_device,
        "device": DeviceContext,
        "get_device_name": lambda *_: "pretended CUDA device",
        "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda given=None: torch._C._accelerator_synchronizeDevice(index_of(given)),
        "Stream": Stream,
        "Event": Event,
        "stream": stream_context,
        "current_stream": current_stream,
        "default_stream": default_stream,
        "set_stream": set_stream,
        "memory_allocated": lambda *_: device.allocated(),
        "max_memory_allocated": lambda *_: device.allocated(maximum=True),
        "reset_peak_memory_stats": lambda *_: device.reset_maximum(),
        "mem_get_info": lambda *_: (8 << 30, 8 << 30),
        "set_sync_debug_mode": lambda mode: device.forbid_waiting(mode in ("error", 2)),
        "empty_cache": nothing(),
        "manual_seed": nothing(),
        "manual_seed_all": nothing(),
        # The CPU's generator plays the device's; this is a state with the size of a CUDA generator's.
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": nothing(),
        "is_current_stream_capturing": lambda: False,
    }
    for name, stand_in in stand_ins.items():
        setattr(cuda, name, stand_in)
    torch.backends.cudnn.is_available = lambda: False
    make = torch.UntypedStorage.__new__

    def new_storage(cls, *args, device=None, **kwargs):
        if device is None or torch.device(device).type != "cuda":
            return make(cls, *args, **({} if device is None else {"device": device}), **kwargs)
        # A CPU build of torch makes no memory without a dtype on a CUDA device.
        return torch.empty(args[0] if args else 0, dtype=torch.uint8, device=device).untyped_storage()

    def as_bytes(storage):
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def copy_storage(self, source, non_blocking=False):
        as_bytes(self).copy_(as_bytes(source), non_blocking)
        return self

    torch.UntypedStorage.__new__ = new_storage
    torch.UntypedStorage.copy_ = copy_storage
    return device
