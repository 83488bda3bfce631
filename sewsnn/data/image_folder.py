"""Images in folders: ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``."""

import json
import os
from pathlib import Path

import numpy as np

from sewsnn.data.decoding import read_file
from sewsnn.errors import DataError, UnreadableError, short
from sewsnn.files import read_regular, text_of

SUFFIXES = (".jpeg", ".jpg", ".png")
_NOT_READ = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".ppm", ".pgm")  # images, too
SPLITS = ("train", "val")
PREPARED = "prepared.json"  # written last by `sewsnn data prepare`
UNFINISHED = "preparing.json"  # there from its first moment until then


class FolderImages:
    """The images of one split, in the order of classes and file names.

    Names are kept in one array: a list of a million strings would be copied by every worker process that counts
    references in it.

    Args:
        folder: holds a folder per class.
        classes: their names, sorted; a label is a place in it.

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
        """The file's bytes; DataError names it."""
        return read_file(self.path(index))


def scan(root: Path) -> dict[str, FolderImages]:
    """The images of each split, whatever put them there.

    Raises:
        DataError: the layout is another; says which was expected.
    """
    classes = {split: _classes(root / split) for split in SPLITS}
    for one, other in (SPLITS, SPLITS[::-1]):
        for name in sorted(set(classes[one]) - set(classes[other])):
            raise DataError(f"{root}: class {name} is in {one} and not in {other}; both need the same folders")
    return {split: FolderImages(root / split, classes[split]) for split in SPLITS}


def check_prepared(root: Path) -> None:
    """Raises DataError where ``sewsnn data prepare`` began to write and did not finish."""
    if (root / UNFINISHED).exists():
        raise DataError(
            f"{root} is not fully prepared: its `sewsnn data prepare` was stopped or is still running; call it again, "
            "it goes on"
        )


def check_counts(root: Path, counts: dict[str, int]) -> None:
    """Raises DataError unless there are as many images as when ``root`` was prepared."""
    manifest = read_json(root / PREPARED)
    if manifest is None:  # images that were not prepared
        return
    images = manifest.get("images")
    if not isinstance(images, dict) or any(type(images.get(split)) is not int for split in counts):
        raise DataError(
            f"{root / PREPARED} is damaged: images must be their number in each split, got {short(images)}",
            str(root / PREPARED),
        )
    for split, count in counts.items():
        if count != images[split]:
            raise DataError(f"{root} has {count:,} images in {split}, its {PREPARED} says {short(images[split])}")


def read_json(path: Path) -> dict | None:
    """None: no such file. Raises DataError where it is none of this program's."""
    try:
        content = json.loads(text_of(read_regular(path)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}", str(path)) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: a JSON object was expected", str(path))
    return content


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]  # macOS and others leave such
    except OSError as error:
        raise UnreadableError.of(folder, error, "the folder ") from None


def _images(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _entries(folder))
    if other := next((name for name in names if name.lower().endswith(_NOT_READ)), None):
        raise DataError(
            f"{folder / other}: images of this kind are not read, and would be missing in silence; expected are "
            f"{', '.join(SUFFIXES)}",
            str(folder / other),
        )
    return [name for name in names if name.lower().endswith(SUFFIXES)]


def _classes(folder: Path) -> list[str]:
    """Sorted names of the class folders."""
    entries = _entries(folder)
    try:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:  # a link to itself
        raise UnreadableError.of(error.filename or folder, error) from None
    if classes:
        return classes
    flat = sum(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    what = f"its {flat:,} images lie flat in it" if flat else "it has no folders"
    raise DataError(
        f"{folder}: {what}; expected is a folder per class with that class's images in it, as "
        f"{folder.name}/n01440764/ILSVRC2012_{folder.name}_00000293.JPEG"
    )
