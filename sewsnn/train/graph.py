"""Training steps as CUDA graphs: the step is captured once per form of the batch and replayed from then on.

A replay starts all kernels of the step with one call, so that a fast GPU does not wait for Python. It repeats exactly
what was captured: the same kernels with the same numbers on the same memory. Therefore batches are copied into memory
that stays, everything that changes from step to step is a tensor on the device, and before each replay we compare what
could have been replaced since the capture.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sewsnn.errors import ConfigError, UserError, one_line, out_of_memory
from sewsnn.train.fixed import Fixed
from sewsnn.train.schema import Config
from sewsnn.train.sums import Sums

WARM_UP = 3  #: steps of each form that run eagerly before the capture: libraries choose algorithms and take memory
MOST_GRAPHS = 8  #: forms of batches that get a graph; others run eagerly
_MOST_CAPTURES = 32  # more mean that something is replaced again and again, and graphs only cost time


class Recorder(Protocol):
    """Captures work on a device for replays."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs ``work`` eagerly, in the way that a later capture needs."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Returns a function that repeats what ``work`` does on the device. The capture itself changes no tensor."""

    def wait(self) -> None:
        """Waits until no replay is running."""


class CudaGraphs:
    """The recorder for CUDA. Warm-up and capture use the same side stream; a replay runs on the current stream.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = None  # all graphs share it: none needs what another has left there

    def warm_up(self, work: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        gc.collect()  # an object that is deleted during the capture could call a function of CUDA that breaks it
        graph = torch.cuda.CUDAGraph()
        # In mode thread_local, threads that load and pin batches may go on.
        place = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        cause: Exception | None = None
        try:
            # If a capture fails, torch does not return to the stream before it; the outer context does.
            with torch.cuda.stream(torch.cuda.current_stream(self.device)), torch.cuda.graph(graph, **place):
                try:
                    work()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:  # the end of a broken capture raises a second error, which says less
            raise (cause or error) from None
        self._pool = graph.pool()
        return graph.replay

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


def recorder(config: Config, device: torch.device, world: int) -> Recorder | None:
    """Returns the recorder of a run, or None without ``train.cuda_graph``.

    Args:
        config: the configuration.
        device: the device of the run.
        world: number of processes.

    Raises:
        ConfigError: CUDA graphs are not possible on this device or with so many processes.
    """
    if not config.train.cuda_graph:
        return None
    if device.type != "cuda":
        raise ConfigError(
            f"train.cuda_graph: true needs a GPU, but this run is on {device}; set train.cuda_graph: false"
        )
    if world > 1:
        raise ConfigError(
            f"train.cuda_graph: true works with one process, got {world}; set train.cuda_graph: false to train with "
            "several processes"
        )
    return CudaGraphs(device)


@dataclass
class _Form:
    """One form of batch: its work, how often it has run eagerly, and its graph."""

    inputs: tuple[Tensor, ...]
    work: Callable[[], None]
    seen: int = 0
    replay: Callable[[], None] | None = None


class GraphedStep:
    """Runs training steps eagerly at first and then by replay.

    The first :data:`WARM_UP` steps of each form of batch are ordinary training steps. The next one is captured and
    replayed, and so are all later ones. A form is the shape, strides and type of every input, with ``constants``. The
    last batch of an epoch, which may be shorter, is a form of its own. Only :data:`MOST_GRAPHS` forms get a graph.

    Args:
        train: the step, ``train(*inputs, step, *constants, sums)``. ``step`` is a tensor on the device. The function
            must not read values of the device on the host, and must change nothing but existing tensors.
        model: the network.
        average: the moving average of its weights, or None.
        optimizer: the optimizer. Its learning rates must be tensors on the device.
        scaler: the GradScaler.
        recorder: captures the step.
    """

    def __init__(
        self,
        train: Callable[..., None],
        model: nn.Module,
        average: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        recorder: Recorder,
    ):
        self._train, self._parts = train, (model, average, optimizer, scaler)
        self._optimizer = optimizer
        self._recorder = recorder
        self._step = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)
        self._sums: Sums | None = None
        self._fixed: Fixed | None = None
        self._forms: dict[Hashable, _Form] = {}
        self._buffers: dict[Hashable, Tensor] = {}
        self.captures = 0  #: graphs captured so far
        self.replays = 0  #: steps that were replayed

    def run(self, inputs: tuple[Tensor, ...], step: int, constants: tuple, sums: Sums) -> None:
        """Runs one step and adds its results to ``sums``, which keeps its values in the memory of the graphs from then
        on.

        Args:
            inputs: the batch.
            step: index of the step in the epoch.
            constants: other arguments of the step. Each combination is a form of its own.
            sums: the sums of the epoch.

        Raises:
            UserError: the step cannot be captured.
            RuntimeError: a learning rate is no longer the tensor that the graphs read, or tensors are replaced so
                often that graphs are of no use.
        """
        if self._sums is None:
            self._sums = sums
        elif sums is not self._sums:
            sums.move_to(self._sums)
            self._sums = sums
        if self._fixed is not None and (what := self._fixed.changed()):
            self._forget(what)
        form = self._form(inputs, constants)
        if form is None:
            self._train(*inputs, step, *constants, sums)
            return
        self._step.fill_(step)
        for own, given in zip(form.inputs, inputs, strict=True):
            own.copy_(given)
        if form.replay is None and form.seen < WARM_UP:
            form.seen += 1
            self._recorder.warm_up(form.work)
            return
        if form.replay is None:
            self._capture(form)
        form.replay()
        self.replays += 1

    def _form(self, inputs: tuple[Tensor, ...], constants: tuple) -> _Form | None:
        """Returns the form of a batch, or None if there are too many."""
        kinds = [(x.shape, x.stride(), x.dtype, x.device) for x in inputs]
        key = (constants, *kinds)
        if key not in self._forms:
            if len(self._forms) == MOST_GRAPHS:
                return None
            for place in enumerate(kinds):
                if place not in self._buffers:
                    self._buffers[place] = torch.empty_like(inputs[place[0]])
            own = tuple(self._buffers[place] for place in enumerate(kinds))
            self._forms[key] = _Form(own, lambda: self._train(*own, self._step, *constants, self._sums))
        return self._forms[key]

    def _capture(self, form: _Form) -> None:
        if self.captures == _MOST_CAPTURES:
            raise RuntimeError(
                f"train.cuda_graph: the step was captured {self.captures} times, because its tensors are replaced "
                "again and again; see the warnings, or set train.cuda_graph: false"
            )
        fixed = Fixed(*self._parts)
        try:
            with _capturable(self._optimizer):
                form.replay = self._recorder.capture(form.work)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise UserError(
                f"train.cuda_graph: the training step cannot be captured ({one_line(error)}). The network must not "
                "read values of the GPU on the host, as .item(), .cpu() and if do; or set train.cuda_graph: false"
            ) from error
        if what := fixed.changed():
            raise UserError(
                f"train.cuda_graph: the training step replaces {what}, which a replay cannot repeat; set "
                "train.cuda_graph: false"
            )
        self._fixed = fixed
        self.captures += 1

    def _forget(self, what: str) -> None:
        """Drops all graphs."""
        warnings.warn(f"train.cuda_graph: {what} has changed, so the step is captured again", stacklevel=4)
        self._recorder.wait()
        self._fixed = None
        self._forms.clear()


@contextlib.contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Tells an Adam optimizer that it is captured. Otherwise it refuses that, and it would warn in eager steps if this
    were set all the time. The fused kernels are the same."""
    before: list[Any] = [group.get("capturable") for group in optimizer.param_groups]
    for group, value in zip(optimizer.param_groups, before, strict=True):
        if value is not None:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            if value is not None:
                group["capturable"] = value
