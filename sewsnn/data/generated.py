"""Generated samples with the shape of a data set, to test a configuration before the data is available. They are not
for results."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sewsnn.data.event_store import frame_pixels
from sewsnn.data.loading import check_sizes
from sewsnn.data.source import Options

_PATTERN = 8  # width and height of the coarse pattern of a class


class Shape(NamedTuple):
    """The shape of the samples of a data set, and its number of classes."""

    size: tuple[int, int, int]  # C, H, W
    num_classes: int
    sequences: bool


SHAPES = {
    "imagenet": Shape((3, 224, 224), 1000, False),
    "cifar10": Shape((3, 32, 32), 10, False),
    "dvs128_gesture": Shape((2, 128, 128), 11, True),
    "cifar10_dvs": Shape((2, 128, 128), 10, True),
    "moving_digits": Shape((2, 128, 128), 10, True),
}


class Generated:
    """A :class:`~sewsnn.data.source.DataSource` with ``options.generated`` training samples and half as many test
    samples (at least one).

    Each class has its own random pattern. An image is the pattern of its class plus noise, with mean 0 and variance
    about 1. A frame of a sequence holds small event counts, with more events where the pattern is higher.
    """

    normalised = None

    def __init__(self, shape: Shape, options: Options):
        if shape.sequences:
            shape = shape._replace(size=(shape.size[0], *[frame_pixels(options)] * 2))
        self.shape, self.options = shape, options
        self.num_classes, self.in_channels, self.sequences = shape.num_classes, shape.size[0], shape.sequences
        self.train_samples = options.generated
        self.test_samples = max(1, options.generated // 2)
        self.steps_per_epoch = options.steps(self.train_samples)
        self.test_steps = -(-len(options.test_share(self.test_samples)) // options.batch_size)
        self.corrupt: dict[str, str] = {}
        check_sizes(self.train_samples, self.test_samples, options)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start, self.steps_per_epoch):
            share = self.options.share(step, self.train_samples)
            yield self._batch(share.start, len(share), epoch + 1)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        size, mine = self.options.batch_size, self.options.test_share(self.test_samples)
        for first in mine[::size]:
            yield self._batch(first, min(size, mine.stop - first), 0)

    def to_float(self, x: Tensor) -> Tensor:
        return x

    def _batch(self, first: int, count: int, part: int) -> tuple[Tensor, Tensor]:
        """Returns ``count`` samples from ``first`` on: of the test set if ``part`` is 0, else of epoch ``part - 1``."""
        labels = (torch.arange(first, first + count) * 7) % self.num_classes
        patterns = torch.stack([self._pattern(int(label)) for label in labels])
        generator = self.options.generator(part, first)
        if not self.sequences:
            return patterns + torch.randn(patterns.shape, generator=generator) / 2, labels
        rates = (patterns / 2 - 1).exp().expand(self.options.T, *patterns.shape)
        return torch.poisson(rates, generator=generator), labels

    def _pattern(self, label: int) -> Tensor:
        channels, height, width = self.shape.size
        generator = torch.Generator().manual_seed(label)
        coarse = torch.randn(1, channels, _PATTERN, _PATTERN, generator=generator)
        return interpolate(coarse, (height, width), mode="nearest")[0]
