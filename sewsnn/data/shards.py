"""WebDataset shards: tar files in which neighbouring members ``KEY.jpg`` and ``KEY.cls`` form a sample.

The shards are not streamed. An index of the position of each image allows reading samples in any order, as from a
folder. Each image therefore comes exactly once per epoch for any number of ranks and workers, the permutation covers
the whole data set and not only a buffer, and a run resumes exactly in the middle of an epoch. A stream would have to
read all earlier data again to resume. The index is built once and kept beside the shards.
"""

import io
import itertools
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sewsnn.errors import DataError, UnreadableError, UserError
from sewsnn.files import open_regular, write_atomic
from sewsnn.progress import tell

IMAGES, LABEL = ("jpg", "jpeg", "png"), "cls"
_NAME = re.compile(r"(?:.*[-_])?(train|val|validation)-(\d+)\.tar")
_MOST_DIGITS = 6  # of a label; with more digits, the last layer of the network would not fit into memory
_NUMBER = re.compile(rb"(?:\xef\xbb\xbf)?\s*(\d{1,%d})\s*" % _MOST_DIGITS)  # optional byte order mark first
_VERSION = 1


class Place(NamedTuple):
    """The position of an image in its shard; offset and size are in bytes."""

    key: str
    label: int
    offset: int
    size: int


class ShardImages:
    """The images of one split, in the order of shards and of samples in them.

    Args:
        shards: the tar files.
        folder: where the index is kept, as ``.<split>.index.npz``. It is rebuilt when the size or the modification time
            of a shard changes.
        split: ``train`` or ``val``.
        workers: number of threads that build the index (at least 4 are used).

    Raises:
        DataError: a shard is damaged, or a sample has no image or no label; the message names it.
    """

    def __init__(self, shards: list[Path], folder: Path, split: str, workers: int = 1):
        self.shards = [str(shard) for shard in shards]
        state = np.array([_state(shard) for shard in shards])
        kept = folder / f".{split}.index.npz"
        index = _kept(kept, shards, state)
        if index is None:
            index = _index(shards, max(workers, 4)) | {"state": state, "version": np.array(_VERSION)}
            index["shards"] = np.array([os.fsencode(shard.name) for shard in shards])
            try:
                write_atomic(kept, lambda file: np.savez(file, **index))
            except UserError as error:
                tell(f"sewsnn: cannot save the index of the shards, so the next run builds it again: {error}")
        self.shard, self.offset, self.size = index["shard"], index["offset"], index["size"]
        self.labels, self.keys = index["label"], index["key"]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Returns ``SHARD:KEY`` for messages."""
        return f"{self.shards[self.shard[index]]}:{os.fsdecode(bytes(self.keys[index]))}"

    def read(self, index: int) -> bytes:
        """Returns the bytes of the image. Raises DataError, which names it."""
        size = int(self.size[index])
        try:
            with open_regular(self.shards[self.shard[index]]) as file:
                file.seek(int(self.offset[index]))
                data = file.read(size)
        except OSError as error:
            raise UnreadableError.of(self.path(index), error) from None
        if len(data) != size:
            raise DataError(f"{self.path(index)}: the shard is truncated inside this image", self.path(index))
        return data


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Finds the shards in a folder by split, ``train`` and ``val``, sorted by name: ``train-000000.tar`` ...,
    ``val-000000.tar`` .... Names may have a prefix, and ``validation`` stands for ``val``. A line on stderr reports
    missing numbers.

    Raises:
        DataError: there are shards of both ``val`` and ``validation``, whose images would count twice.
    """
    found: dict[str, list[Path]] = {}
    numbers: dict[str, set[int]] = {}
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise UnreadableError.of(root, error, "the folder ") from None
    for name in names:
        if not name.startswith(".") and (match := _NAME.fullmatch(name)):
            found.setdefault(match[1][:3].replace("tra", "train"), []).append(root / name)
            numbers.setdefault(match[1], set()).add(int(match[2]))
    if {"val", "validation"} <= numbers.keys():
        raise DataError(
            f"{root} has shards of val and of validation, so images would count twice; remove one of the two"
        )
    for split, there in numbers.items():
        if missing := max(there) + 1 - min(there) - len(there):
            tell(f"sewsnn: {root}: {missing} of the {split} shards {min(there)} to {max(there)} are missing")
    return found


def open_shards(root: Path, workers: int = 1) -> tuple[ShardImages, ShardImages]:
    """Returns the training and test images of the shards in ``root``.

    Raises:
        DataError: a split has no shards, a shard is damaged, or a test label is larger than every training label.
    """
    found = find_shards(root)
    for split in ("train", "val"):
        if split not in found:
            raise DataError(f"{root} has no {split} shards; expected {split}-000000.tar ...")
    train, val = (ShardImages(found[split], root, split, workers) for split in ("train", "val"))
    if val.labels.max() > train.labels.max():
        raise DataError(
            f"{root}: val has the label {val.labels.max()}, but the largest label in train is {train.labels.max()}"
        )
    return train, val


def places(shard: Path) -> list[Place]:
    """Returns the positions of the images of a shard.

    Raises:
        DataError: as in :class:`ShardImages`.
    """
    out = []
    try:
        length = os.path.getsize(shard)
        with open_regular(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = ((_split(member.name), member) for member in tar if member.isfile())
            samples = itertools.groupby((m for m in members if m[0][1]), key=lambda m: m[0][0])
            for key, group in samples:
                out.append(_place(shard, tar, key, {name[1]: member for name, member in group}))
                if out[-1].offset + out[-1].size > length:
                    raise DataError(
                        f"{shard} is truncated: sample {key} extends beyond the file's {length:,} bytes", str(shard)
                    )
            # tarfile also stops, without an error, at bytes that are not a header.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.fileobj.tell() != tar.offset + tarfile.BLOCKSIZE:
                raise DataError(
                    f"{shard} is truncated or damaged at byte {tar.offset:,}: neither a member nor the end mark",
                    str(shard),
                )
    except OSError as error:
        raise UnreadableError.of(shard, error) from None
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{shard} is damaged, or not an uncompressed tar file (only those allow random access): {error}",
            str(shard),
        ) from None
    if not out:
        raise DataError(f"{shard} holds no samples", str(shard))
    return out


def pack(samples) -> bytes:
    """Returns the bytes of a shard with samples ``(key, image bytes, suffix, label)``."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        for key, image, suffix, label in samples:
            for name, content in ((f"{key}.{suffix}", image), (f"{key}.{LABEL}", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _split(name: str) -> tuple[str, str]:
    """Splits a member's name into key and suffix at its first dot, as webdataset does."""
    folder, _, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    if last.startswith("__") and last.endswith("__"):  # metadata of webdataset
        suffix = ""
    return (f"{folder}/{key}" if folder else key), suffix.lower()


def _place(shard: Path, tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> Place:
    image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
    if image is None or LABEL not in members:
        missing = f"label (.{LABEL})" if image is not None else f"image (.{', .'.join(IMAGES)})"
        raise DataError(f"{shard}: sample {key} has no {missing}; it has .{', .'.join(members)}", str(shard))
    text = tar.extractfile(members[LABEL]).read()
    number = _NUMBER.fullmatch(text)
    if not number:
        raise DataError(
            f"{shard}: the label of sample {key} must be a whole number >= 0, got {text[:20]!r}", str(shard)
        )
    return Place(key, int(number[1]), image.offset_data, image.size)


def _index(shards: list[Path], workers: int) -> dict[str, np.ndarray]:
    with ThreadPoolExecutor(workers) as pool:  # the threads mostly wait for the disk
        found = list(pool.map(places, shards))
    flat = [place for part in found for place in part]
    columns = {name: np.array([getattr(place, name) for place in flat]) for name in ("label", "offset", "size")}
    columns["key"] = np.array([os.fsencode(place.key) for place in flat])
    columns["shard"] = np.repeat(np.arange(len(shards)), [len(part) for part in found])
    return columns


def _state(shard: Path) -> tuple[int, int]:
    try:
        about = shard.stat()
    except OSError as error:
        raise UnreadableError.of(shard, error) from None
    return about.st_size, about.st_mtime_ns


def _makes_sense(index: dict[str, np.ndarray], state: np.ndarray) -> bool:
    """Returns whether the columns have the form of :func:`_index`, and each image lies within its shard."""
    keys, columns = index["key"], [index[name] for name in ("label", "shard", "offset", "size")]
    if keys.dtype.kind != "S" or keys.ndim != 1 or not len(keys):
        return False
    if any(c.dtype.kind not in "iu" or c.shape != keys.shape or c.min() < 0 for c in columns):
        return False
    label, shard, offset, size = columns
    if label.max() >= 10**_MOST_DIGITS or shard.max() >= len(state):
        return False
    length = state[shard, 0]
    return bool((size <= length).all() and (offset <= length - size).all())


def _kept(path: Path, shards: list[Path], state: np.ndarray) -> dict[str, np.ndarray] | None:
    """Returns the saved index if it belongs to the shards as they are now; None if it does not or is damaged."""
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
            index = dict(file)
        names = [os.fsdecode(bytes(name)) for name in index["shards"]]
        same = index["version"] == _VERSION and np.array_equal(index["state"], state)
        return index if same and names == [shard.name for shard in shards] and _makes_sense(index, state) else None
    except Exception:  # the index can be rebuilt from the shards; np.load raises many types of errors
        return None
