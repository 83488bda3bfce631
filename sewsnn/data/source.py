"""The interface between the training loop and a data set: :class:`Options` and :class:`DataSource`."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """The settings of a data set. Each data set uses the fields that apply to it.

    Args:
        batch_size: samples per batch of one process, at least 1. Required.
        seed: any integer. Required. The order and the augmentation of the training data depend only on the seed, the
            epoch and the sample, not on the number of processes or workers.
        T: frames per sequence of event data (default 4).
        rank: index of this process, 0 to ``world - 1`` (default 0).
        world: number of processes that train together (default 1). A training batch of all processes is a contiguous
            part of the epoch's permutation; each process takes its share.
        root: folder of the files; None (default) if the data set needs none.
        workers: number of worker processes that load and augment; 0 (default): the training process does it.
        shift: images in memory: training images move by up to this many pixels in each direction, zeros fill the border
            (default 0).
        flip: images in memory: training images are mirrored with probability 1/2 (default False).
        drop_last: leave out the last training batch of an epoch if it is smaller (default False).
        generated: number of generated training samples that replace the data set; 0 (default): use the files.
        image_size: ImageNet: width and height in pixels of the network's training input (default 224).
        test_size: ImageNet: width and height in pixels of the network's test input; 0 (default): ``image_size``.
        resize: ImageNet: pixels of the shorter side of a test image before the centre crop (default 256).
        scale_min: ImageNet: smallest fraction of the area that a random training crop covers, in [0, 1] (default 0.08).
        augment: ImageNet: further augmentation of training images with torchvision: ``"trivial"``, ``"rand"``,
            ``"auto"`` or ``"none"`` (default).
        erase: ImageNet: probability that a rectangle of a training image is erased, in [0, 1] (default 0).
        loader: ImageNet: library that decodes and augments, ``"torchvision"`` (default) or ``"dali"``.
        on_corrupt: ``"stop"`` (default) raises at a damaged file; ``"skip"`` leaves it out and counts it.
        split_by: event data: ``"number"`` (default), ``"time"`` or ``"duration"``; see
            :func:`sewsnn.data.integrate_events`.
        frame_us: event data: microseconds per frame with ``split_by="duration"``; 0 (default) otherwise.
        frame_size: event data: width and height of the frames in pixels, a divisor of the sensor's 128; a frame pixel
            counts the events of ``(128 / frame_size)^2`` sensor pixels. 0 (default): 128.
        split: event data: which samples form the test set; ``"paper"`` (default) is the split of the SEW ResNet paper.

    Raises:
        ValueError: a number is out of range, or ``resize`` is smaller than the test image; the message names the field.
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
    frame_size: int = 0
    split: str = "paper"

    def __post_init__(self):
        leasts = {"batch_size": 1, "T": 1, "world": 1, "image_size": 1, "resize": 1}
        leasts |= dict.fromkeys(
            ("rank", "workers", "shift", "generated", "test_size", "scale_min", "erase", "frame_us", "frame_size"), 0
        )
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, most in (("rank", self.world - 1), ("scale_min", 1), ("erase", 1)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}")
        if self.test_pixels > self.resize:
            raise ValueError(
                f"resize must be at least the size of the test images, {self.test_pixels}, got {self.resize}"
            )

    @property
    def test_pixels(self) -> int:
        """Width and height of the test images in pixels."""
        return self.test_size or self.image_size

    def generator(self, *place: int) -> torch.Generator:
        """Returns a generator seeded for a place in the run (epoch, sample, ...); the seed may have any size."""
        return torch.Generator().manual_seed(self.seed_of(*place))

    def seed_of(self, *place: int) -> int:
        """Returns the seed of the random numbers for that place."""
        return seed_of(self.seed, *place)

    def steps(self, samples: int) -> int:
        """Returns the number of training steps per epoch, which is equal on every process. Every process has the same
        number of samples in each step. For this, an epoch leaves out up to ``world - 1`` samples at its end, other
        samples in each epoch."""
        full, rest = divmod(samples, self.batch_size * self.world)
        return full + (rest >= self.world and not self.drop_last)

    def share(self, step: int, samples: int) -> range:
        """Returns the positions in the epoch's permutation that this process trains on in ``step``."""
        first = step * self.batch_size * self.world
        size = min(self.batch_size, (samples - first) // self.world)
        return range(first + self.rank * size, first + (self.rank + 1) * size)

    def test_share(self, samples: int) -> range:
        """Returns the test samples of this process. The shares do not overlap, and no sample is padded."""
        return range(samples * self.rank // self.world, samples * (self.rank + 1) // self.world)


def seed_of(seed: int, *place: int) -> int:
    """Returns the seed of the random numbers for a place in a run with the seed ``seed``."""
    for part in place:
        seed = seed * 1_000_003 + part
    return seed % 2**63


def identity(source: "DataSource") -> dict[str, int | str | None]:
    """Returns values that identify a data set: the number of samples in each split, and a checksum of the class names
    if classes have names. None: the source does not provide the value."""
    sets = [getattr(source, name, None) for name in ("train", "test")]
    sizes = [len(samples) if hasattr(samples, "__len__") else None for samples in sets]
    names = getattr(getattr(sets[0], "images", None), "classes", None)
    classes = None if names is None else f"{zlib.crc32(chr(0).join(names).encode(errors='surrogateescape')):08x}"
    return {"train": sizes[0], "test": sizes[1], "classes": classes}


def other_data(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Returns a description of how two data sets (:func:`identity`) differ, or an empty text. Values that one of them
    does not provide are not compared."""
    found = []
    for key, what in (("train", "training samples"), ("test", "test samples"), ("classes", "")):
        old, new = (before or {}).get(key), now.get(key)
        if old is not None and new is not None and old != new:
            found.append(f"{old:,} {what} then, {new:,} now" if what else "the class names differ")
    return "; ".join(found)


class DataSource(Protocol):
    """The batches of a training set and a test set.

    A batch depends only on the seed, the epoch and the step, so a run can be resumed at any step.

    Attributes:
        num_classes: number of classes.
        in_channels: channels of the network's input.
        sequences: whether samples are sequences of frames and not images.
        steps_per_epoch: training steps per epoch, equal on all processes.
        test_steps: test batches of this process.
        normalised: mean and standard deviation of each channel, for values in [0, 1], by which :meth:`to_float`
            normalises; None if it does not normalise.
        corrupt: files that were left out so far, and why.
    """

    num_classes: int
    in_channels: int
    sequences: bool
    steps_per_epoch: int
    test_steps: int
    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None
    corrupt: dict[str, str]

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the training batches of this process.

        Args:
            epoch: index of the epoch, from 0.
            start: first step to yield (default 0).

        Returns:
            Batches ``(images [N, C, H, W] or sequences [T, N, C, H, W], labels [N])``. Pass the samples to
            :meth:`to_float` before the network.
        """
        ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's share of the test set as ``(samples, labels [N])``, in a fixed order."""
        ...

    def to_float(self, x: Tensor) -> Tensor:
        """Converts a batch to the input of the network. uint8 images become normalised float32 only on the device, so a
        quarter of the bytes crosses the bus.

        Args:
            x: samples of a batch, on the device of the network.

        Returns:
            The input of the network, float32 with the same shape.
        """
        ...
