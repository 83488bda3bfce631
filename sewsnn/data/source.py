"""What the training loop asks of a data set."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class DataSource(Protocol):
    """Batches that depend on nothing but the seed, the epoch and the step, so that a run can be resumed anywhere."""

    num_classes: int
    in_channels: int
    steps_per_epoch: int
    test_steps: int

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``(images [N, C, H, W], labels [N])`` of the epoch, from step ``start`` on."""
        ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole test set in a fixed order."""
        ...
