"""Where images are cut: the same numbers for every loader."""

import math
from typing import NamedTuple

import torch

RATIO = (3 / 4, 4 / 3)  # width / height of random crops
TRIES = 10


class Window(NamedTuple):
    """Pixels ``[top : top + height, left : left + width]`` of an image."""

    top: int
    left: int
    height: int
    width: int


def random_window(height: int, width: int, scale_min: float, generator: torch.Generator) -> Window:
    """Part of an image to train with: ``scale_min`` to all of its area, width / height 3/4 to 4/3.

    The draws and their order are those of torchvision's ``RandomResizedCrop(scale=(scale_min, 1))``, so that a seed
    makes the crop it makes there. Source: Szegedy et al., "Going Deeper with Convolutions" (2015), section 6.
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
    # The largest middle part of an allowed ratio.
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return Window((height - h) // 2, (width - w) // 2, h, w)


def random_flip(generator: torch.Generator) -> bool:
    """Mirrored with probability 1/2; drawn after the window, as in torchvision's ``RandomHorizontalFlip``."""
    return torch.rand(1, generator=generator).item() < 0.5


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """An image's size once its shorter side is ``shorter``, as of torchvision's ``Resize``."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def centre_window(height: int, width: int, size: int) -> Window:
    """The middle ``size x size`` pixels, as of torchvision's ``CenterCrop``; ``size`` is at most either side."""
    return Window(round((height - size) / 2), round((width - size) / 2), size, size)
