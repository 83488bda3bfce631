"""``sewsnn data prepare imagenet``: resizes the images once, so that training decodes about a quarter of the pixels.

The shorter side of an image becomes ``size`` pixels (never more than it had), with Pillow's antialiased bilinear
filter, the same as in the test transform. The result is a JPEG of quality 95 with chroma subsampling, as in the
originals. Images that are not larger are copied byte for byte. Training then crops from the resized images, so its
crops have less detail than crops of the originals.

The output has the folders and file names of the original (a resized PNG keeps its name), or WebDataset shards in a
fixed random order. ``preparing.json`` exists from the first moment on and makes training refuse the folder, until
``prepared.json`` records the number of images.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from sewsnn.data import resizing, shards
from sewsnn.data.image_folder import PREPARED, SPLITS, UNFINISHED, FolderImages, read_json, scan
from sewsnn.data.resizing import Done
from sewsnn.errors import DataError, UnreadableError, UserError, plain
from sewsnn.files import make_folder, write_text
from sewsnn.locking import FolderLock
from sewsnn.progress import Bar

_CHUNK = 64  # images per job of a worker process
_KINDS = ("resized", "copied", "kept")
_VERSION = 1


def prepare(
    name: str, root: Path, output: Path, *, workers: int, size: int, on_corrupt: str, per_shard: int = 0
) -> str:
    """See :func:`sewsnn.data.preparing.prepare`.

    Raises:
        UserError: a folder cannot be read or written, or another process is preparing it.
        DataError: an image is damaged.
    """
    if root.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f"--output must lie outside --root {root}, got {output}")
    originals = scan(root)
    classes = originals["train"].classes
    settings = {"version": _VERSION, "name": name, "size": size, "quality": resizing.QUALITY, "per_shard": per_shard}
    settings["root"] = str(root.resolve())  # another root may have images with the same names
    settings["originals"] = {split: len(images) for split, images in originals.items()}
    with FolderLock(output, "prepared"):
        _check_output(output, settings)
        write_text(output / UNFINISHED, json.dumps(settings) + "\n")
        resizing.remove_unfinished(output)
        if per_shard:
            work, jobs = _fill_shard, _shard_jobs(originals, output, per_shard, size)
        else:
            work, jobs = _fill_folder, _folder_jobs(originals, output, size)
        counts, corrupt = dict.fromkeys(_KINDS, 0), {}
        total = sum(settings["originals"].values())
        # The pool starts all its processes at once, so start no more than there are jobs.
        workers = min(workers, sum(-(-len(images) // (per_shard or _CHUNK)) for images in originals.values()))
        try:
            with Bar(total=total, unit="image", mininterval=0.5) as bar:
                for done in resizing.run(work, jobs, workers, on_corrupt == "stop"):
                    if done.kind == "corrupt":
                        corrupt[done.path] = done.reason
                    else:
                        counts[done.kind] += 1
                    bar.update()
        except KeyboardInterrupt:
            seen = sum(counts.values()) + len(corrupt)
            raise UserError(
                f"stopped after {seen:,} of {total:,} images. Run the same command again to resume"
            ) from None
        _check_left(originals, corrupt)
        images = _checked(originals, output, corrupt, per_shard)
        os.sync()  # flush the images before the file that declares them complete
        manifest = settings | {"images": images, "corrupt": corrupt, "classes": classes}
        write_text(output / PREPARED, json.dumps(manifest, indent=1) + "\n")
        (output / UNFINISHED).unlink()
    numbers = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
    lines = [f"{output}: {images['train']:,} training and {images['val']:,} test images ({numbers})"]
    if corrupt:
        lines += [f"damaged images, left out ({len(corrupt):,}):", *(f"  {reason}" for reason in corrupt.values())]
    return "\n".join(lines)


def _check_output(output: Path, settings: dict) -> None:
    """Raises UserError if the folder holds anything other than the result of an earlier call with the same settings."""
    known = [found for name in (UNFINISHED, PREPARED) if (found := read_json(output / name)) is not None]
    if not known and (others := sorted(entry for entry in os.listdir(output) if not entry.startswith("."))):
        raise UserError(
            f"{output} is not empty and was not created by this command (it holds {others[0]}); choose another --output"
        )
    for found in known:
        for key, value in settings.items():
            if found.get(key) != value:
                raise UserError(
                    f"{output} was prepared with {key} {plain(found.get(key))}, not {value}: remove it or choose "
                    "another --output"
                )


def _folder_jobs(originals: dict[str, FolderImages], output: Path, size: int) -> Iterator[tuple]:
    """Yields jobs for :func:`_fill_folder`: chunks of ``(original, prepared)`` paths."""
    for split, images in originals.items():
        for name in images.classes:
            make_folder(output / split / name)
            resizing.remove_unfinished(output / split / name)
        for first in range(0, len(images), _CHUNK):
            paths = [images.path(i) for i in range(first, min(first + _CHUNK, len(images)))]
            yield [(path, str(output / split / os.path.relpath(path, images.folder))) for path in paths], size


def _fill_folder(paths: list[tuple[str, str]], size: int) -> list[Done]:
    """Prepares a chunk of images; runs in a worker process."""
    return [_fill_file(original, prepared, size) for original, prepared in paths]


def _fill_file(original: str, prepared: str, size: int) -> Done:
    try:
        if resizing.is_whole(prepared):
            return Done("kept", original)
        kind, data = resizing.small(original, size)
        resizing.write(prepared, data)
        return Done(kind, original)
    except UnreadableError as error:
        return _unreadable(original, error)
    except DataError as error:
        return Done("corrupt", original, str(error))
    except OSError as error:
        return Done("failed", original, f"cannot write {prepared}: {error.strerror or error}")


def _unreadable(path: str, error: UnreadableError) -> Done:
    """Returns a failure that aborts even with ``on_corrupt="skip"``: if the disk is gone, the remaining images would
    pass for the whole set."""
    return Done("failed", path, f"{error}. Run the same command again to resume")


def _shard_jobs(originals: dict[str, FolderImages], output: Path, per_shard: int, size: int) -> Iterator[tuple]:
    """Yields jobs for :func:`_fill_shard`: the path of a shard with ``(key, original, label)`` of each image."""
    for split, images in originals.items():
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        for number, first in enumerate(range(0, len(order), per_shard)):
            content = [
                (_key(images, i), images.path(i), int(images.labels[i])) for i in order[first : first + per_shard]
            ]
            yield str(output / f"{split}-{number:06d}.tar"), content, size


def _key(images: FolderImages, index: int) -> str:
    """Returns a unique key for an image. A key must not contain a dot, which would end it."""
    return f"{index:08d}_{Path(images.path(index)).stem.replace('.', '_')}"


def _fill_shard(shard: str, content: list[tuple[str, str, int]], size: int) -> list[Done]:
    """Prepares one shard; runs in a worker process."""
    try:
        there = {place.key for place in shards.places(Path(shard))}
    except UnreadableError as error:
        if not error.missing:  # the shard may be complete
            return [_unreadable(shard, error)]
        there = set()
    except DataError:  # the shard is incomplete
        there = set()
    results = [_sample(*entry, there, size) for entry in content]
    if any(done.kind == "failed" for done, _ in results):
        return [done for done, _ in results]
    out, samples = [done for done, _ in results], [sample for _, sample in results if sample]
    if {key for key, *_ in samples} == there:  # all images that can be read are in the shard
        return out
    if there:  # the set of damaged images has changed: write the shard again
        os.unlink(shard)
        return _fill_shard(shard, content, size)
    try:
        resizing.write(shard, shards.pack(samples))
    except OSError as error:
        out.append(Done("failed", shard, f"cannot write {shard}: {error.strerror or error}"))
    return out


def _sample(key: str, path: str, label: int, there: set[str], size: int) -> tuple[Done, tuple | None]:
    """Returns the result for an image, and its entry in the shard; None as the entry of a damaged image."""
    if key in there:
        return Done("kept", path), (key,)
    try:
        kind, image = resizing.small(path, size)
    except UnreadableError as error:
        return _unreadable(path, error), None
    except DataError as error:
        return Done("corrupt", path, str(error)), None
    return Done(kind, path), (key, image, "png" if image.startswith(b"\x89PNG") else "jpg", label)


def _check_left(originals: dict[str, FolderImages], corrupt: dict[str, str]) -> None:
    """Raises DataError if no image of a split or of a class could be read: training could not use the rest."""
    for images in originals.values():
        left = {int(images.labels[i]) for i in range(len(images)) if images.path(i) not in corrupt} if corrupt else None
        if left is not None and len(left) < len(images.classes):
            empty = next(name for label, name in enumerate(images.classes) if label not in left)
            raise DataError(
                f"no image of {os.path.join(images.folder, empty)} could be read ({len(corrupt):,} damaged in all), "
                f"so the set is not usable: {next(iter(corrupt.values()))}"
            )


def _checked(originals: dict[str, FolderImages], output: Path, corrupt: dict, per_shard: int) -> dict[str, int]:
    """Returns the number of images per split. Raises UserError unless it equals the number of readable originals."""
    found = shards.open_shards(output) if per_shard else scan(output).values()
    images = dict(zip(SPLITS, map(len, found), strict=True))
    for split, original in originals.items():
        left = len(original) - sum(path.startswith(os.path.join(original.folder, "")) for path in corrupt)
        if images[split] != left:
            raise UserError(f"{output} has {images[split]:,} images in {split}; expected {left:,}")
    return images
