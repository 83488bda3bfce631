"""Data sets in files, from which worker processes load samples one by one."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sewsnn.data.source import Options
from sewsnn.errors import DataError, UnreadableError

# The iterators in use. If the garbage collector found one in a reference cycle, it would close the queues to the
# workers before the loader's finalizer could tell the workers to exit, and the finalizer would then wait for them.
# A reference here prevents that.
_at_work: set = set()


# Damaged files are rare. If MOST_IN_A_ROW training samples in a row, or all samples of a test batch of at least
# LEAST_BATCH, cannot be read, the cause is the disk, and the run stops.
MOST_IN_A_ROW, LEAST_BATCH = 16, 8


class Samples(Protocol):
    """The samples of a training or test set; picklable for worker processes."""

    def __len__(self) -> int: ...

    def load(self, index: int, seed: int | None) -> tuple[Tensor, int]:
        """Returns a sample and its label.

        Args:
            index: the sample.
            seed: the source of all its randomness; None returns the sample without augmentation, for the test.

        Raises:
            DataError: the file cannot be read or is damaged; the message names it.
        """
        ...


class LoadedSource:
    """Batches of samples that ``options.workers`` processes load ahead, in the order that
    :class:`~sewsnn.data.source.Options` defines.

    Args:
        train: the training set.
        test: the test set.
        num_classes: number of classes.
        in_channels: channels of the network's input.
        sequences: whether samples are sequences of frames and not images.
        options: see :class:`~sewsnn.data.source.Options`. With ``on_corrupt="skip"``, the next readable sample replaces
            a damaged training sample, and a damaged test sample is left out; ``corrupt`` names all of them. If many
            samples in a row cannot be read, loading stops, because the cause is the disk.
        to_float: converts a batch on the device to the input of the network.
        normalised: mean and standard deviation of each channel, for values in [0, 1], that ``to_float`` uses; None if
            it does not normalise.
    """

    def __init__(
        self,
        train: Samples,
        test: Samples,
        num_classes: int,
        in_channels: int,
        sequences: bool,
        options: Options,
        to_float: Callable[[Tensor], Tensor] = Tensor.float,
        normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ):
        self.train, self.test, self.options, self._to_float = train, test, options, to_float
        self.num_classes, self.in_channels, self.sequences = num_classes, in_channels, sequences
        self.normalised = normalised
        self.steps_per_epoch = options.steps(len(train))
        self.test_steps = -(-len(options.test_share(len(test))) // options.batch_size)
        self.corrupt: dict[str, str] = {}
        check_sizes(len(train), len(test), options)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        samples = len(self.train)
        order = torch.randperm(samples, generator=self.options.generator(epoch)).tolist()
        steps = range(start, self.steps_per_epoch)
        plan = [[(order[i], self._seed(epoch, order[i])) for i in self.options.share(step, samples)] for step in steps]
        yield from self._batches(self.train, plan)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        mine, size = self.options.test_share(len(self.test)), self.options.batch_size
        yield from self._batches(
            self.test, [[(i, None) for i in mine[k : k + size]] for k in range(0, len(mine), size)]
        )

    def to_float(self, x: Tensor) -> Tensor:
        return self._to_float(x)

    def _seed(self, epoch: int, index: int) -> int:
        return self.options.seed_of(epoch + 1, index)

    def _batches(self, samples: Samples, plan: list[list[tuple[int, int | None]]]) -> Iterator[tuple[Tensor, Tensor]]:
        workers = min(self.options.workers, len(plan))
        loader = DataLoader(
            _Loading(samples, self.options.on_corrupt == "skip"),
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=_Collate(self.sequences),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker if workers else None,
            generator=torch.Generator().manual_seed(0),  # the loader draws from this one and not from the run's
        )
        with _held_back():
            batches = iter(loader)
        _at_work.add(batches)
        try:
            while (batch := self._next(batches)) is not None:
                yield from self._kept(batch)
        finally:  # release it now: the traceback of an error may keep this frame alive
            _at_work.discard(batches)
            del batches

    def _kept(self, batch: "_Batch") -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batch unless it is empty, and records the samples that were left out."""
        if batch.error:
            raise DataError(batch.error)
        self.corrupt.update(batch.corrupt)
        if len(batch.y):
            yield batch.x, batch.y

    def _next(self, batches) -> "_Batch | None":
        try:
            return next(batches, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a worker process that loads data ended ({error}): it was killed, or memory or /dev/shm is too small "
                f"for data.workers {self.options.workers}"
            ) from None


def check_sizes(train: int, test: int, options: Options) -> None:
    """Raises DataError if there is no training batch for each process, or no test sample."""
    if not (options.steps(train) and test):
        raise DataError(
            f"data.batch_size: {options.batch_size} on {options.world} process(es) needs more samples than the data "
            f"set has ({train} training samples, {test} test samples)"
        )


class _Batch(NamedTuple):
    x: Tensor
    y: Tensor
    corrupt: dict[str, str]
    error: str | None


class _Loading(torch.utils.data.Dataset):
    """Maps ``(index, seed)`` to ``(sample or None, label, {file: cause}, error or None)``. Errors are returned because
    an exception in a worker process would reach the user with the worker's traceback."""

    def __init__(self, samples: Samples, skip: bool):
        self.samples, self.skip = samples, skip

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int | None]):
        index, seed = place
        corrupt = {}
        for _ in range(min(len(self.samples), MOST_IN_A_ROW)):
            try:
                x, y = self.samples.load(index, seed)
                return x, y, corrupt, None
            except DataError as error:
                if not self.skip or _may_be_whole(error):
                    return None, 0, {}, str(error)
                corrupt[getattr(error, "path", None) or f"sample {index}"] = str(error)
            if seed is None:  # a test sample is not replaced
                return None, 0, corrupt, None
            index = (index + 1) % len(self.samples)
        return None, 0, {}, _too_many(corrupt)


def _may_be_whole(error: DataError) -> bool:
    """Returns whether the file exists but cannot be read now. The disk may be gone; that does not mean the file is
    damaged."""
    gone = getattr(error, "missing", False) or isinstance(error.__context__, FileNotFoundError)
    return isinstance(error, UnreadableError) and not gone


class _Collate:
    def __init__(self, sequences: bool):
        self.dim = 1 if sequences else 0

    def __call__(self, samples) -> _Batch:
        error = next((error for *_, error in samples if error), None)
        corrupt = {name: text for *_, found, _ in samples for name, text in found.items()}
        xs = [x for x, *_ in samples if x is not None]
        if not xs and len(corrupt) >= LEAST_BATCH:
            error = _too_many(corrupt)
        ys = torch.tensor([y for x, y, *_ in samples if x is not None])
        return _Batch(torch.stack(xs, self.dim) if xs and not error else torch.empty(0), ys, corrupt, error)


def _too_many(corrupt: dict[str, str]) -> str:
    last = list(corrupt.values())[-1]
    return f"{len(corrupt)} samples in a row could not be read, so loading stops; the last error: {last}"


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM. Worker processes that start meanwhile inherit the block, so no signal ends one before
    :func:`_start_worker` has run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    """Makes a worker process ignore Ctrl-C and SIGTERM, which are for the training process. The worker exits when the
    training process ends or tells it to."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    """Exits on SIGTERM from the parent, which is the parent's last resort to end a worker. A SIGTERM from a batch
    system, which goes to all processes, is ignored."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
