"""Crop windows and flips. All loaders draw the same random numbers here."""

import math
from typing import NamedTuple

import torch

RATIO = (3 / 4, 4 / 3)  # range of width / height of a random crop
TRIES = 10


class Window(NamedTuple):
    """A crop of an image: pixels ``[top : top + height, left : left + width]``."""

    top: int
    left: int
    height: int
    width: int


def random_window(height: int, width: int, scale_min: float, generator: torch.Generator) -> Window:
    """Draws a random crop for training: ``scale_min`` to 1 of the image's area, with width / height between 3/4 and
    4/3.

    The random draws and their order equal those of torchvision's ``RandomResizedCrop(scale=(scale_min, 1))``, so the
    same seed gives the same crop as in torchvision. After ten unsuccessful draws the result is the largest centred crop
    with an allowed ratio.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        scale_min: smallest fraction of the area, in [0, 1].
        generator: source of the random numbers.

    Source: Szegedy et al., "Going Deeper with Convolutions" (2015), section 6.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    def place(most: int) -> int:
        return int(torch.randint(0, most + 1, (1,), generator=generator))

    log_ratio = torch.log(torch.tensor(RATIO))
    for _ in range(TRIES):
        area = height * width * uniform(scale_min, 1.0).item()
        ratio = torch.exp(uniform(*log_ratio.tolist())).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = place(height - h)
            return Window(top, place(width - w), h, w)
    # The largest centred crop with an allowed ratio.
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return Window((height - h) // 2, (width - w) // 2, h, w)


def random_flip(generator: torch.Generator) -> bool:
    """Draws whether to mirror the image (probability 1/2). Call it after :func:`random_window`, as torchvision applies
    ``RandomHorizontalFlip`` after the crop."""
    return torch.rand(1, generator=generator).item() < 0.5


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns the height and width of an image whose shorter side becomes ``shorter`` pixels, as torchvision's
    ``Resize`` computes them."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def centre_window(height: int, width: int, size: int) -> Window:
    """Returns the centre crop of ``size x size`` pixels, as torchvision's ``CenterCrop`` does. ``size`` must not exceed
    either side."""
    return Window(round((height - size) / 2), round((width - size) / 2), size, size)
