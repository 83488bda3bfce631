"""ImageNet from folders of JPEG files or from WebDataset shards.

Training images pass ``RandomResizedCrop(image_size, scale=(scale_min, 1))``, a horizontal flip with probability 1/2
(always on: it is the usual augmentation of this data set and that of the SEW ResNet paper), then ``augment``, then
``erase``. Test images are resized so that the shorter side has ``resize`` pixels, then cropped to the centre square of
``test_size`` pixels (0: ``image_size``). Both resizes use Pillow's antialiased bilinear filter, as torchvision does.

Source: supplement A.1 of the SEW ResNet paper, and the code of its authors.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sewsnn.data import crops, decoding, vision
from sewsnn.data.image_folder import SPLITS, check_counts, check_prepared, scan
from sewsnn.data.loading import LoadedSource
from sewsnn.data.shards import find_shards, open_shards
from sewsnn.data.source import Options
from sewsnn.errors import DataError, UnreadableError
from sewsnn.files import is_folder

# Mean and standard deviation of the training images per channel, for values in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The value of an erased pixel. torchvision's reference scripts write 0 after normalisation, which is the mean. Batches
# here stay uint8 until they are on the device, and the nearest uint8 value differs from the mean by up to 0.009.
ERASED = tuple(round(255 * value) for value in MEAN)
_AUGMENT = {"trivial": "TrivialAugmentWide", "rand": "RandAugment", "auto": "AutoAugment"}


class Images(Protocol):
    """The encoded images of one split."""

    labels: np.ndarray

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


def open_imagenet(options: Options) -> LoadedSource:
    """Opens ImageNet, or any data set with the same layout, from ``options.root``. The number of classes is that of the
    training images.

    Raises:
        DataError: a folder or file is missing or damaged, or its preparation is not finished; the message names it.
        UserError: torchvision, Pillow or DALI is not installed.
    """
    check_options(options)
    train, test = open_images(options.root, options.workers)
    classes = int(train.labels.max()) + 1
    if options.loader == "dali":
        from sewsnn.data.dali import DaliSource

        return DaliSource(train, test, classes, options)
    parts = (Loaded(images, options) for images in (train, test))
    return LoadedSource(*parts, classes, 3, False, options, normalise, (MEAN, STD))


def check_options(options: Options) -> None:
    """Raises DataError if an option cannot be used with ImageNet."""
    if options.shift:
        raise DataError(
            "data.shift is for small images. ImageNet uses random crops (data.scale_min); set data.shift to 0"
        )
    if options.loader == "dali" and (options.augment != "none" or options.erase):
        key = "augment" if options.augment != "none" else "erase"
        raise DataError(f"data.{key} is not available with data.loader: dali; use data.loader: torchvision")


def open_images(root: str | None, workers: int = 1) -> tuple[Images, Images]:
    """Returns the training and test images of a root that holds folders or shards. Raises DataError as
    :func:`open_imagenet`."""
    if root is None:
        raise DataError(
            "data.root must name the folder that holds ImageNet: train/ and val/, or WebDataset shards. To test the "
            "configuration without the data, set --data.generated 64"
        )
    folder = Path(root)
    check_prepared(folder)
    if all(is_folder(folder / split, UnreadableError) for split in SPLITS):
        train, val = scan(folder).values()
    elif is_folder(folder, UnreadableError) and find_shards(folder):
        train, val = open_shards(folder, workers)
    else:
        raise DataError(
            f"data.root: {root} does not hold ImageNet: expected train/<class>/*.JPEG and val/<class>/*.JPEG, or "
            "WebDataset shards train-000000.tar ... and val-000000.tar ..."
        )
    check_counts(folder, {"train": len(train), "val": len(val)})
    return train, val


class Loaded:
    """The :class:`~sewsnn.data.loading.Samples` of decoded images: ``uint8 [3, image_size, image_size]``."""

    def __init__(self, images: Images, options: Options):
        self.images, self.options = images, options
        self._random = None
        self._prepare()

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, seed: int | None) -> tuple[Tensor, int]:
        options, v2 = self.options, self._v2
        image = decoding.decode(self.images.read(index), self.images.path(index))
        height, width = image.height, image.width
        if seed is None:
            size = decoding.check_size(crops.resized(height, width, options.resize), self.images.path(index))
            window = crops.centre_window(*size, options.test_pixels)
            image = v2.functional.crop(v2.functional.resize(image, list(size)), *window)
            return v2.functional.pil_to_tensor(image), int(self.images.labels[index])
        generator = torch.Generator().manual_seed(seed)
        window = crops.random_window(height, width, options.scale_min, generator)
        image = v2.functional.resized_crop(image, *window, size=[options.image_size] * 2)
        if crops.random_flip(generator):
            image = v2.functional.horizontal_flip(image)
        if self._random is None:
            return v2.functional.pil_to_tensor(image), int(self.images.labels[index])
        # These transforms draw from torch's global generator. It continues from the state of ours, and fork_rng
        # restores its own state afterwards. torch.manual_seed would also seed the generators of the GPU.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            return self._random(image), int(self.images.labels[index])

    def _prepare(self) -> None:
        self._v2 = v2 = vision.transforms()
        steps = []
        if self.options.augment != "none":
            steps.append(getattr(v2, _AUGMENT[self.options.augment])())
        if steps or self.options.erase:
            steps.append(v2.PILToTensor())
            if self.options.erase:
                steps.append(v2.RandomErasing(self.options.erase, value=ERASED))
            self._random = v2.Compose(steps)

    def __getstate__(self) -> dict:
        return {"images": self.images, "options": self.options}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def normalise(images: Tensor) -> Tensor:
    """Converts uint8 images to float32 with about mean 0 and variance 1 over the training set, on the device of the
    images."""
    mean, std = (255 * torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images.float() - mean) / std
