"""Data sets whose samples are loaded one by one from files, by worker processes."""

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

# What loads now. When cyclic garbage is collected, the queues to the workers are closed before the loader's own
# finalizer could tell the workers to end, and then waits for them: what is in here is never garbage.
_at_work: set = set()


# Damaged files are few; where all of so many in a row, or of a test batch of so many, cannot be read, it is the disk.
MOST_IN_A_ROW, LEAST_BATCH = 16, 8


class Samples(Protocol):
    """A training or a test set; picklable, for worker processes."""

    def __len__(self) -> int: ...

    def load(self, index: int, seed: int | None) -> tuple[Tensor, int]:
        """A sample and its label. ``seed``: all its randomness comes from it; None: the sample as it is for the test.

        Raises:
            DataError: its file cannot be read, or is not what it should be; names it.
        """
        ...


class LoadedSource:
    """Batches of samples that ``workers`` processes load ahead, in the order of :class:`Options`.

    Args:
        train, test: the sets.
        num_classes, in_channels, sequences: see :class:`~sewsnn.data.source.DataSource`.
        options: see there. ``on_corrupt="skip"``: a training sample that cannot be read is replaced by the next that
            can, a test sample is left out; ``corrupt`` names them all. Where many in a row cannot, it stops all the
            same: then it is the disk.
        to_float: on the device.
        normalised: mean and deviation of each channel in [0, 1] by which ``to_float`` normalises; None: it does not.
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
            generator=torch.Generator().manual_seed(0),  # the loader draws from it: not from the run's
        )
        with _held_back():
            batches = iter(loader)
        _at_work.add(batches)
        try:
            while (batch := self._next(batches)) is not None:
                yield from self._kept(batch)
        finally:  # now, though an error's traceback still holds this frame
            _at_work.discard(batches)
            del batches

    def _kept(self, batch: "_Batch") -> Iterator[tuple[Tensor, Tensor]]:
        """The batch, unless nothing is left of it; what was left out is noted."""
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
                f"a process that loads data ended ({error}): too little memory (also /dev/shm) for data.workers "
                f"{self.options.workers}, or it was killed"
            ) from None


def check_sizes(train: int, test: int, options: Options) -> None:
    """Raises DataError unless there is a batch to train with for each process, and anything to test with."""
    if not (options.steps(train) and test):
        raise DataError(
            f"data.batch_size: {options.batch_size} on {options.world} process(es) is more than there is "
            f"({train} samples to train with, {test} to test with)"
        )


class _Batch(NamedTuple):
    x: Tensor
    y: Tensor
    corrupt: dict[str, str]
    error: str | None


class _Loading(torch.utils.data.Dataset):
    """``(index, seed)`` -> ``(sample | None, label, {file: what is wrong} , error | None)``: an exception of a worker
    would reach the user as its traceback."""

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
            if seed is None:  # a test sample has no substitute
                return None, 0, corrupt, None
            index = (index + 1) % len(self.samples)
        return None, 0, {}, _too_many(corrupt)


def _may_be_whole(error: DataError) -> bool:
    """Whether the file cannot be read now, though it is there: its disk may be gone, which is no damage."""
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
    return f"{len(corrupt)} samples in a row could not be read, and more are not tried; the last: {last}"


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """SIGINT and SIGTERM come after it: a worker that starts now inherits that, and is not ended by one before
    :func:`_start_worker` has run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    """Ctrl-C and SIGTERM are for the training process, which saves; workers end when it does, or when it says so."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    """SIGTERM of the parent is how it ends a worker that does not hear it otherwise. A batch system sends it to all."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
