"""A provider in its own process, which runs a step on request. Providers alternate, and do not share memory."""

import contextlib
import ctypes
import gc
import multiprocessing
import time

import torch
from torch import nn

from benchmarks.sew_step.networks import DTYPES, MEMORY_FORMATS, Case, build
from benchmarks.sew_step.stopwatch import Stopwatch

#: The names of the convolutions in a profile.
CONVOLUTIONS = {f"aten::{name}" for name in ("mkldnn_convolution", "cudnn_convolution", "convolution_backward")}


class Step:
    """A network, its optimizer and one batch of random images."""

    def __init__(self, provider: str, case: Case, memory_format: str):
        self.case = case
        self.net = build(provider, case, memory_format)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, fused=True)
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
        dtype = torch.float64 if case.dtype == "float64" else torch.float32
        self.images = images.to(case.device, dtype).contiguous(memory_format=MEMORY_FORMATS[memory_format])
        self.labels = torch.arange(case.batch, device=case.device) % 10
        self._allocate_momentum()

    def _allocate_momentum(self) -> None:
        """Allocates the momentum, which exists before and after a step and is therefore not part of its memory."""
        for parameter in self.net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self) -> torch.Tensor:
        low = self.case.dtype == "bfloat16"
        with torch.autocast(self.case.device, DTYPES["bfloat16"]) if low else contextlib.nullcontext():
            logits = self.net(self.images)
        return nn.functional.cross_entropy(logits if self.case.dtype == "float64" else logits.float(), self.labels)

    def gradient(self) -> tuple[float, list[float]]:
        """Returns the loss and the gradient of conv1, which has passed through every layer."""
        loss = self.loss()
        loss.backward()
        grad = next(self.net.parameters()).grad.double().flatten().tolist()
        self.optimizer.zero_grad()
        return loss.item(), grad

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def saved_bytes(self) -> int:
        """Returns the bytes that forward saves for backward: each storage once, without parameters and buffers."""
        own = {t.untyped_storage().data_ptr() for t in (*self.net.parameters(), *self.net.buffers())}
        found = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
        return sum(size for pointer, size in found.items() if pointer not in own)


class Rival:
    """The commands of a worker; each public method is one command."""

    def __init__(self, provider: str, case: Case, memory_format: str):
        self.what = provider, case, memory_format
        self.cuda = case.device == "cuda"

    def make(self) -> None:
        torch.backends.cudnn.benchmark = True
        if self.what[0] == "compile":
            Step(*self.what)()  # the memory of the compiler does not count for the step
        self.step = Step(*self.what)
        own_convolutions = self.what[0] in ("compile", "packed")
        self.watch = None if self.cuda or own_convolutions else Stopwatch(self.step.net)
        gc.collect()
        self.before = self._memory_now()

    def gradient(self) -> tuple[float, list[float]]:
        return self.step.gradient()

    def exact_gradient(self) -> tuple[float, list[float]]:
        provider, case, memory_format = self.what
        return Step(provider, case.exact(), memory_format).gradient()

    def turn(self, steps: int) -> tuple[float, float]:
        """Returns the milliseconds of a step and of its convolutions. The latter come from a stopwatch; on CUDA, and
        where the convolutions are not torch modules, from the profile of one more step."""
        if self.watch:
            self.watch.seconds = 0.0
            return self._milliseconds(steps), 1e3 * self.watch.seconds / steps
        if self.cuda:
            self.step()  # allocates its memory
        bare = self._milliseconds(steps)
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if self.cuda else []
        with torch.profiler.profile(activities=activities) as profile:
            self._milliseconds(1)
        events = [event for event in profile.key_averages() if event.key in CONVOLUTIONS]
        convolutions = sum(e.self_device_time_total if self.cuda else e.self_cpu_time_total for e in events) / 1e3
        if self.cuda:
            torch.cuda.empty_cache()  # leave the memory to the other workers
        return bare, convolutions

    def memory(self) -> dict:
        """Returns MiB: the peak of a step above the memory before the first step, and the memory that forward saves for
        backward.

        Call this before a profiler has run, because a profiler keeps memory of its own.
        """
        self.step()
        peak = self._peak_of_a_step()
        return {"peak_MiB": peak, "saved_MiB": self.step.saved_bytes() / 2**20}

    def _milliseconds(self, steps: int) -> float:
        wait = torch.cuda.synchronize if self.cuda else lambda: None
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        wait()
        return 1e3 * (time.perf_counter() - start) / steps

    def _memory_now(self) -> int | None:
        """Returns the bytes in use; None if the system does not report them."""
        if self.cuda:
            return torch.cuda.memory_allocated()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # free the memory that building the network left
            return _status("VmRSS")
        return None

    def _peak_of_a_step(self) -> float | None:
        """Returns the peak in MiB above ``before``. Memory that any allocator keeps for the next step counts."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.step()
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - self.before) / 2**20
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # resets the highest resident size
        except OSError:
            return None
        self.step()
        return (_status("VmHWM") - self.before) / 2**20 if self.before is not None else None


def _status(name: str) -> int:
    """Returns a value of /proc in bytes."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name + ":"))


def serve(connection, provider: str, case: Case, memory_format: str) -> None:
    """The main function of a worker: answers each command with (result, None) or (None, error)."""
    rival = Rival(provider, case, memory_format)
    with contextlib.suppress(EOFError):  # the parent has closed the connection
        while True:
            command, *arguments = connection.recv()
            try:
                answer = getattr(rival, command)(*arguments), None
            except Exception as error:
                answer = None, f"{type(error).__name__}: {error}"[:300]
            connection.send(answer)


class Worker:
    """The parent's side of a worker. The worker builds its network while the parent continues; the first :meth:`answer`
    waits for it."""

    def __init__(self, provider: str, case: Case, memory_format: str):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # import torch only once
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, provider, case, memory_format), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.send(("make",))

    def __call__(self, command: str, *arguments):
        """Runs a command in the worker and waits for its answer."""
        self._connection.send((command, *arguments))
        return self.answer()

    def answer(self):
        """Waits for the answer to the last command.

        Raises:
            RuntimeError: the command failed, or the process died.
        """
        try:
            answer, error = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process ended with code {self._process.exitcode}") from None
        if error:
            raise RuntimeError(error)
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.join()
