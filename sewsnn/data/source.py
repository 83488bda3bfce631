"""What the training loop asks of a data set, and what it tells one."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """What data sets are told; each uses what concerns it.

    Args:
        batch_size: samples per batch of one process.
        seed: order and augmentation of the training data depend on it, the epoch and the sample alone: not on the
            number of processes or workers.
        T: frames per sequence (event data).
        rank, world: this process, and how many train together. A training batch of all of them is a run of the
            epoch's order; each takes its part of it.
        root: folder of the files.
        workers: processes that load and augment; 0: the training process itself.
        shift: training images are moved by up to so many pixels in each direction, zeros come in.
        flip: training images are mirrored with probability 1/2.
        drop_last: the last batch of a training epoch is left out where it is smaller.
        generated: not the data set, but so many generated training samples of its shape.
        image_size, test_size: ImageNet: pixels across of what the network sees in training, and in the test (0: the
            same).
        resize: ImageNet: of the shorter side before the test images' centre is cut out.
        scale_min: ImageNet: least part of the area that a random crop of a training image has.
        augment: ImageNet: a further augmentation of training images, by torchvision's names.
        erase: ImageNet: probability that a rectangle of a training image is erased.
        loader: ImageNet: what decodes and augments.
        on_corrupt: a file that is not what it should be stops the run, or is left out and counted.
        split_by: event data: frames of equally many events, of equal time, or of ``frame_us`` microseconds each.
        frame_us: event data: with ``split_by="duration"``, microseconds per frame.
        split: event data: which samples are for the test; ``paper`` is the paper's.
    """

    batch_size: int
    seed: int
    T: int = 4
    rank: int = 0
    world: int = 1
    root: str | None = None
    workers: int = 0
    shift: int = 0
    flip: bool = False
    drop_last: bool = False
    generated: int = 0
    image_size: int = 224
    test_size: int = 0
    resize: int = 256
    scale_min: float = 0.08
    augment: str = "none"
    erase: float = 0.0
    loader: str = "torchvision"
    on_corrupt: str = "stop"
    split_by: str = "number"
    frame_us: int = 0
    split: str = "paper"

    def __post_init__(self):
        leasts = {"batch_size": 1, "T": 1, "world": 1, "image_size": 1, "resize": 1}
        leasts |= dict.fromkeys(
            ("rank", "workers", "shift", "generated", "test_size", "scale_min", "erase", "frame_us"), 0
        )
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, most in (("rank", self.world - 1), ("scale_min", 1), ("erase", 1)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}")
        if self.test_pixels > self.resize:
            raise ValueError(f"resize must be at least the test images' size, {self.test_pixels}, got {self.resize}")

    @property
    def test_pixels(self) -> int:
        """Pixels across of the test images."""
        return self.test_size or self.image_size

    def generator(self, *place: int) -> torch.Generator:
        """Random numbers of a place in the run (epoch, sample ...), whatever the seed's size."""
        return torch.Generator().manual_seed(self.seed_of(*place))

    def seed_of(self, *place: int) -> int:
        """The seed of that place's random numbers."""
        return seed_of(self.seed, *place)

    def steps(self, samples: int) -> int:
        """Training steps per epoch, of every process. So that all have equally many samples in each, up to
        ``world - 1`` samples are left out at the end of an epoch (others in each)."""
        full, rest = divmod(samples, self.batch_size * self.world)
        return full + (rest >= self.world and not self.drop_last)

    def share(self, step: int, samples: int) -> range:
        """Which places of the epoch's order this process has in a step."""
        first = step * self.batch_size * self.world
        size = min(self.batch_size, (samples - first) // self.world)
        return range(first + self.rank * size, first + (self.rank + 1) * size)

    def test_share(self, samples: int) -> range:
        """Which of the test samples this process has: each has its own, none is padded, none comes twice."""
        return range(samples * self.rank // self.world, samples * (self.rank + 1) // self.world)


def seed_of(seed: int, *place: int) -> int:
    """The seed of the random numbers of a place in a run with ``seed``."""
    for part in place:
        seed = seed * 1_000_003 + part
    return seed % 2**63


def identity(source: "DataSource") -> dict[str, int | str | None]:
    """What tells one data set from another: the numbers of samples, and a checksum of the classes' names where they
    have names. None: the source does not tell."""
    sets = [getattr(source, name, None) for name in ("train", "test")]
    sizes = [len(samples) if hasattr(samples, "__len__") else None for samples in sets]
    names = getattr(getattr(sets[0], "images", None), "classes", None)
    classes = None if names is None else f"{zlib.crc32(chr(0).join(names).encode(errors='surrogateescape')):08x}"
    return {"train": sizes[0], "test": sizes[1], "classes": classes}


def other_data(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """In words, what of two data sets (:func:`identity`) differs; empty if nothing does that both tell."""
    found = []
    for key, what in (("train", "training samples"), ("test", "test samples"), ("classes", "")):
        old, new = (before or {}).get(key), now.get(key)
        if old is not None and new is not None and old != new:
            found.append(f"{old:,} {what}, here {new:,}" if what else "classes of other names")
    return "; ".join(found)


class DataSource(Protocol):
    """Batches that depend on nothing but the seed, the epoch and the step, so that a run can be resumed anywhere."""

    num_classes: int
    in_channels: int
    sequences: bool  #: whether samples are sequences rather than images
    steps_per_epoch: int  #: the same on all processes
    test_steps: int  #: of this process
    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None  #: by which mean and deviation, of colours in [0, 1]
    corrupt: dict[str, str]  #: files that were left out so far, and what is wrong with them

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's batches of the epoch, from step ``start`` on: ``(images [N, C, H, W] or sequences
        [T, N, C, H, W], labels [N])``, for :meth:`to_float`."""
        ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the test set in a fixed order."""
        ...

    def to_float(self, x: Tensor) -> Tensor:
        """What the network is given of a batch, once it is on the device: bytes become normalised float32 there, so
        that a quarter of the bytes crosses the bus."""
        ...
