"""CIFAR-10 from its binary files: 50,000 training and 10,000 test images of 3 x 32 x 32 pixels in ten classes.

A file consists of records of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue values, row by row.
This is the "binary version" among the published archives; reading it needs no unpickling.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sewsnn.data.images import ImagesInMemory
from sewsnn.data.source import Options
from sewsnn.errors import DataError, UnreadableError
from sewsnn.files import read_regular

FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
CLASSES, RECORD = 10, 1 + 3 * 32 * 32
# Mean and standard deviation of the training images per channel, for values in [0, 1].
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def open_cifar10(options: Options) -> ImagesInMemory:
    """Opens CIFAR-10 from ``options.root``: the folder with the binary files, or the folder that holds
    ``cifar-10-batches-bin``.

    Raises:
        DataError: a file is missing or damaged; the message names it.
    """
    if options.root is None:
        raise DataError(f"data.root must name the folder with the binary files of CIFAR-10 ({FOLDER})")
    root = Path(options.root)
    root = root / FOLDER if (root / FOLDER).is_dir() else root
    train, test = (_read([root / name for name in names]) for names in (TRAIN, TEST))
    return ImagesInMemory(train, test, CLASSES, options, normalise, (MEAN, STD))


def normalise(images: Tensor) -> Tensor:
    """Converts uint8 images to float32 with mean 0 and variance 1 over the training set, per channel."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def _read(paths: list[Path]) -> tuple[Tensor, Tensor]:
    records = np.concatenate([_records(path) for path in paths])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(records[:, 0].astype(np.int64))


def _records(path: Path) -> np.ndarray:
    try:
        data = np.frombuffer(read_regular(path), np.uint8)
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    if len(data) == 0 or len(data) % RECORD:
        raise DataError(
            f"{path} has {len(data):,} bytes; expected a multiple of {RECORD:,} bytes, the size of a CIFAR-10 record"
        )
    records = data.reshape(-1, RECORD)
    if records[:, 0].max() >= CLASSES:
        row = int((records[:, 0] >= CLASSES).argmax())
        raise DataError(
            f"{path}: label {records[row, 0]} at offset {row * RECORD:,}; CIFAR-10 labels are 0 to {CLASSES - 1}"
        )
    return records
