"""Data sets of still images that are held in memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sewsnn.data.loading import check_sizes
from sewsnn.data.source import Options


class ImagesInMemory:
    """A :class:`~sewsnn.data.source.DataSource` of images in memory.

    Args:
        train: ``(images [N, C, H, W], labels [N])``; the images may have any dtype.
        test: the test set, in the same form.
        num_classes: number of classes.
        options: see :class:`~sewsnn.data.source.Options`; ``shift`` and ``flip`` augment the training images.
        to_float: converts a batch of images, after shifts and flips, to the input of the network.
        normalised: mean and standard deviation of each channel, for values in [0, 1], that ``to_float`` uses; None if
            it does not normalise.
    """

    sequences = False

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        num_classes: int,
        options: Options,
        to_float: Callable[[Tensor], Tensor] = Tensor.float,
        normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ):
        self.train_images, self.train_labels = train
        self.test_images, self.test_labels = test
        self.num_classes, self.options, self._to_float = num_classes, options, to_float
        self.normalised = normalised
        self.corrupt: dict[str, str] = {}
        self.in_channels = self.train_images.shape[1]
        self.steps_per_epoch = options.steps(len(self.train_labels))
        self.test_steps = -(-len(options.test_share(len(self.test_labels))) // options.batch_size)
        check_sizes(len(self.train_labels), len(self.test_labels), options)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        options = self.options
        generator = options.generator(epoch)
        order = torch.randperm(len(self.train_labels), generator=generator)
        shifts = torch.randint(-options.shift, options.shift + 1, (len(order), 2), generator=generator)
        flips = torch.rand(len(order), generator=generator) < 0.5 if options.flip else None
        for step in range(start, self.steps_per_epoch):
            share = options.share(step, len(order))
            index = order[share.start : share.stop]
            images = self.train_images[index]
            if options.shift:
                images = shifted(images, shifts[index], options.shift)
            if flips is not None:
                images = torch.where(flips[index][:, None, None, None], images.flip(-1), images)
            yield images, self.train_labels[index]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        size, mine = self.options.batch_size, self.options.test_share(len(self.test_labels))
        for first in mine[::size]:
            part = slice(first, min(first + size, mine.stop))
            yield self.test_images[part], self.test_labels[part]

    def to_float(self, x: Tensor) -> Tensor:
        return self._to_float(x)


def shifted(images: Tensor, shifts: Tensor, most: int) -> Tensor:
    """Moves each of ``images [N, C, H, W]`` by its own ``shifts [N, 2]`` (rows, columns) with ``|shift| <= most``;
    zeros fill the border."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (most, most, most, most)).movedim(1, -1)
    rows = torch.arange(height) + (most - shifts[:, :1])  # [N, H]
    columns = torch.arange(width) + (most - shifts[:, 1:])  # [N, W]
    batch = torch.arange(len(images))[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
