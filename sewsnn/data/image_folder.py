"""Images in folders: ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``."""

import json
import os
from pathlib import Path

import numpy as np

from sewsnn.data.decoding import read_file
from sewsnn.errors import DataError, UnreadableError, short
from sewsnn.files import read_regular, text_of

SUFFIXES = (".jpeg", ".jpg", ".png")
_NOT_READ = (
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".jp2",
    ".avif",
    ".heic",
    ".ppm",
    ".pgm",
)  # image formats that are not supported
SPLITS = ("train", "val")
PREPARED = "prepared.json"  # `sewsnn data prepare` writes it last
UNFINISHED = "preparing.json"  # exists while `sewsnn data prepare` is unfinished


class FolderImages:
    """The images of one split, in the order of classes and file names.

    The names are stored in one array. As a Python list of a million strings, every worker process would copy them,
    because reading a string changes its reference count.

    Args:
        folder: holds one folder per class.
        classes: the names of these folders, sorted; the label of an image is the index of its class.

    Raises:
        DataError: a class has no image, or the folder cannot be read.
    """

    def __init__(self, folder: Path, classes: list[str]):
        self.folder, self.classes = str(folder), classes
        names = [_images(folder / name) for name in classes]
        for name, found in zip(classes, names, strict=True):
            if not found:
                raise DataError(f"{folder / name} has no image ({', '.join(SUFFIXES)})")
        self.names = np.array([os.fsencode(name) for found in names for name in found])
        self.labels = np.repeat(np.arange(len(classes)), [len(found) for found in names])

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.classes[self.labels[index]], os.fsdecode(bytes(self.names[index])))

    def read(self, index: int) -> bytes:
        """Returns the bytes of the file. Raises DataError, which names the file."""
        return read_file(self.path(index))


def scan(root: Path) -> dict[str, FolderImages]:
    """Returns the images of each split, ``train`` and ``val``.

    Raises:
        DataError: the folder has another layout; the message describes the expected one.
    """
    classes = {split: _classes(root / split) for split in SPLITS}
    for one, other in (SPLITS, SPLITS[::-1]):
        for name in sorted(set(classes[one]) - set(classes[other])):
            raise DataError(f"{root}: class {name} is in {one} but not in {other}; both need the same class folders")
    return {split: FolderImages(root / split, classes[split]) for split in SPLITS}


def check_prepared(root: Path) -> None:
    """Raises DataError if ``sewsnn data prepare`` started to write into the folder and did not finish."""
    if (root / UNFINISHED).exists():
        raise DataError(
            f"the preparation of {root} is not finished: `sewsnn data prepare` was stopped or is still running. Run it "
            "again to resume it"
        )


def check_counts(root: Path, counts: dict[str, int]) -> None:
    """Raises DataError if the number of images has changed since ``root`` was prepared."""
    manifest = read_json(root / PREPARED)
    if manifest is None:  # the images were not prepared by sewsnn
        return
    images = manifest.get("images")
    if not isinstance(images, dict) or any(type(images.get(split)) is not int for split in counts):
        raise DataError(
            f"{root / PREPARED} is damaged: images must hold the number of images of each split, got {short(images)}",
            str(root / PREPARED),
        )
    for split, count in counts.items():
        if count != images[split]:
            raise DataError(f"{root} has {count:,} images in {split}, but {PREPARED} lists {short(images[split])}")


def read_json(path: Path) -> dict | None:
    """Reads a JSON object. Returns None if the file does not exist. Raises DataError if its content is not a JSON
    object."""
    try:
        content = json.loads(text_of(read_regular(path)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}", str(path)) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: expected a JSON object", str(path))
    return content


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]  # hidden files, as macOS creates them
    except OSError as error:
        raise UnreadableError.of(folder, error, "the folder ") from None


def _images(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _entries(folder))
    if other := next((name for name in names if name.lower().endswith(_NOT_READ)), None):
        raise DataError(
            f"{folder / other}: this image format is not supported, and the image must not be skipped silently; "
            f"expected {', '.join(SUFFIXES)}",
            str(folder / other),
        )
    return [name for name in names if name.lower().endswith(SUFFIXES)]


def _classes(folder: Path) -> list[str]:
    """Returns the sorted names of the class folders."""
    entries = _entries(folder)
    try:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:  # a link that points to itself
        raise UnreadableError.of(error.filename or folder, error) from None
    if classes:
        return classes
    flat = sum(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    what = f"it holds {flat:,} images without class folders" if flat else "it has no class folders"
    raise DataError(
        f"{folder}: {what}; expected one folder per class with the images of that class, such as "
        f"{folder.name}/n01440764/ILSVRC2012_{folder.name}_00000293.JPEG"
    )
