"""What the training loop asks of a data set, and what it tells one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """What data sets are told; each uses what concerns it.

    Args:
        batch_size: samples per batch.
        seed: order and augmentation of the training data depend on it, the epoch and the step alone.
        T: frames per sequence (event data).
        root: folder of the files.
        shift: training images are moved by up to so many pixels in each direction, zeros come in.
        flip: training images are mirrored with probability 1/2.
        drop_last: the last batch of a training epoch is left out where it is smaller.
        generated: not the data set, but so many generated training samples of its shape.
    """

    batch_size: int
    seed: int
    T: int = 4
    root: str | None = None
    shift: int = 0
    flip: bool = False
    drop_last: bool = False
    generated: int = 0

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("T", 1), ("shift", 0), ("generated", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def generator(self, *place: int) -> torch.Generator:
        """Random numbers of a place in the run (epoch, sample ...), whatever the seed's size."""
        number = self.seed
        for part in place:
            number = number * 1_000_003 + part
        return torch.Generator().manual_seed(number % 2**63)

    def steps(self, samples: int) -> int:
        """Training steps per epoch."""
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)


class DataSource(Protocol):
    """Batches that depend on nothing but the seed, the epoch and the step, so that a run can be resumed anywhere."""

    num_classes: int
    in_channels: int
    sequences: bool  #: whether samples are sequences rather than images
    steps_per_epoch: int
    test_steps: int

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the epoch, from step ``start`` on: ``(images [N, C, H, W] or sequences [T, N, C, H, W],
        labels [N])``."""
        ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole test set in a fixed order."""
        ...
