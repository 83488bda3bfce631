"""Writes a small ImageNet: image files of several sizes and modes, in a few classes that a network can learn."""

import importlib.util
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

CLASSES = ("n01440764", "n01443537", "n01484850")
SIZES = ((48, 64), (64, 48), (40, 40), (37, 91), (120, 83))  # height, width


def pixels(label: int, number: int, height: int, width: int) -> np.ndarray:
    """An image ``uint8 [height, width, 3]``. Each class has a colour; each image has its own noise and stripes."""
    noise = np.random.default_rng([label, number]).integers(0, 60, (height, width, 3))
    stripes = 20 * ((np.arange(width) + number) // 8 % 2)[None, :, None]
    colour = np.eye(3)[label % 3] * 130
    return (noise + stripes + colour).astype(np.uint8)


def encoded(image: np.ndarray, mode: str = "RGB", kind: str = "JPEG", **options) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    options = {"quality": 92, **options} if kind == "JPEG" else options
    Image.fromarray(image).convert(mode).save(file, kind, **options)
    return file.getvalue()


def sample(label: int, number: int) -> bytes:
    return encoded(pixels(label, number, *SIZES[number % len(SIZES)]))


def make_tree(root: Path, train: int = 7, val: int = 3) -> Path:
    """Writes ``train`` and ``val`` images per class to ``root``. Training images include a grey and a CMYK JPEG, and
    a PNG that is named .JPEG, as ImageNet has them."""
    special = {(0, 1): ("L", "JPEG"), (1, 2): ("CMYK", "JPEG"), (2, 3): ("RGBA", "PNG")}
    for split, count, first in (("train", train, 0), ("val", val, 100)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(first, first + count):
                kind = special.get((label, number)) if split == "train" else None
                image = pixels(label, number, *SIZES[number % len(SIZES)])
                (folder / f"{name}_{number}.JPEG").write_bytes(encoded(image, *kind) if kind else sample(label, number))
    return root


def need(package: str, required: str, folder: Path | None = None) -> None:
    """Skips the module if a package is not installed; fails instead if the variable ``required`` is 1.

    Args:
        folder: another folder in which the package may be.
    """
    if folder and folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides no package of the environment
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of what the package lies in
        found = False
    if not found and os.environ.get(required) == "1":
        raise ModuleNotFoundError(f"{required} is 1, and {package} is not installed")
    if not found:
        pytest.skip(f"{package} is not installed", allow_module_level=True)


def need_torchvision() -> None:
    need("torchvision", "SEWSNN_REQUIRE_TORCHVISION")
