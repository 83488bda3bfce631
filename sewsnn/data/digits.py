"""scikit-learn's bundled handwritten digits: 1,797 real images of 8x8 pixels, ten classes, nothing to download.

Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), its test part.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sewsnn.errors import UserError

SPLIT_SEED = 0  # the split stays the same whatever the seed of the run
TEST_FRACTION = 0.2


class Digits:
    """1,437 training and 360 test images, split by class, in [0, 1].

    Args:
        batch_size: images per batch; the last batch of an epoch is smaller.
        seed: order and shifts of the training images depend on it, the epoch and the step alone.
        shift: training images are moved by up to so many pixels in each direction, zeros come in.
    """

    num_classes = 10
    in_channels = 1

    def __init__(self, batch_size: int, seed: int, shift: int = 0):
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError:
            raise UserError("data.name: digits needs scikit-learn; pip install 'sewsnn[train]'") from None
        digits = load_digits()
        parts = train_test_split(
            digits.images, digits.target, test_size=TEST_FRACTION, random_state=SPLIT_SEED, stratify=digits.target
        )
        images = [torch.from_numpy(p).float().div_(16).unsqueeze_(1) for p in parts[:2]]
        labels = [torch.from_numpy(p).long() for p in parts[2:]]
        self.train_images, self.test_images = images
        self.train_labels, self.test_labels = labels
        self.batch_size, self.seed, self.shift = batch_size, seed, shift
        self.steps_per_epoch = math.ceil(len(self.train_labels) / batch_size)
        self.test_steps = math.ceil(len(self.test_labels) / batch_size)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train_labels), generator=generator)
        shifts = torch.randint(-self.shift, self.shift + 1, (len(order), 2), generator=generator)
        for step in range(start, self.steps_per_epoch):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = self.train_images[index]
            yield (_shifted(images, shifts[index], self.shift) if self.shift else images), self.train_labels[index]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.test_images.split(self.batch_size), self.test_labels.split(self.batch_size), strict=True)


def _shifted(images: Tensor, shifts: Tensor, most: int) -> Tensor:
    """Each image moved by its own (rows, columns), |shift| <= most."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (most, most, most, most))
    rows = torch.arange(height) + (most - shifts[:, :1])  # [N, H]
    columns = torch.arange(width) + (most - shifts[:, 1:])  # [N, W]
    batch = torch.arange(len(images))[:, None, None]
    return padded[batch, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)
