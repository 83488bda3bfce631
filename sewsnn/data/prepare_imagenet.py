"""``sewsnn data prepare imagenet``: images made small once, so that training decodes a quarter of the pixels.

An image's shorter side becomes ``size`` (never more than it was), with Pillow's antialiased bilinear filter, the one
the test transform would use, and is written as a JPEG of quality 95 with chroma at half the resolution, as the
originals have it. Images that are not larger are copied byte for byte. Crops in training come from the small images:
they have less detail than crops of the originals.

The output has the folders and file names of the original (a PNG that was made small keeps its name), or is WebDataset
shards, in an order drawn once. ``preparing.json`` is in the output from the first moment on, and makes training refuse
it, until ``prepared.json`` says how many images there are.
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

_CHUNK = 64  # images a process is given at once
_KINDS = ("resized", "copied", "there")
_VERSION = 1


def prepare(
    name: str, root: Path, output: Path, *, workers: int, size: int, on_corrupt: str, per_shard: int = 0
) -> str:
    """See :func:`sewsnn.data.preparing.prepare`.

    Raises:
        UserError: a folder cannot be read or written, or another call is at it; DataError: an image is damaged.
    """
    if root.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f"--output must lie outside --root {root}, got {output}")
    originals = scan(root)
    classes = originals["train"].classes
    settings = {"version": _VERSION, "name": name, "size": size, "quality": resizing.QUALITY, "per_shard": per_shard}
    settings["root"] = str(root.resolve())  # images of another one may have the same names
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
        # All are started at once, whether there is work for them or not.
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
            raise UserError(f"stopped after {seen:,} of {total:,} images; call again, it goes on") from None
        _check_left(originals, corrupt)
        images = _checked(originals, output, corrupt, per_shard)
        os.sync()  # the images, before what says that they are there
        manifest = settings | {"images": images, "corrupt": corrupt, "classes": classes}
        write_text(output / PREPARED, json.dumps(manifest, indent=1) + "\n")
        (output / UNFINISHED).unlink()
    numbers = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
    lines = [f"{output}: {images['train']:,} training and {images['val']:,} test images ({numbers})"]
    if corrupt:
        lines += [f"{len(corrupt):,} left out:", *(f"  {reason}" for reason in corrupt.values())]
    return "\n".join(lines)


def _check_output(output: Path, settings: dict) -> None:
    """Raises UserError where the folder holds something else than an earlier call's work."""
    known = [found for name in (UNFINISHED, PREPARED) if (found := read_json(output / name)) is not None]
    if not known and (others := sorted(entry for entry in os.listdir(output) if not entry.startswith("."))):
        raise UserError(f"{output} is not empty and was not made by this command (it holds {others[0]})")
    for found in known:
        for key, value in settings.items():
            if found.get(key) != value:
                raise UserError(
                    f"{output} was prepared with {key} {plain(found.get(key))}, not {value}: remove it, or name "
                    "another --output"
                )


def _folder_jobs(originals: dict[str, FolderImages], output: Path, size: int) -> Iterator[tuple]:
    """Of chunks of ``(original, prepared)``."""
    for split, images in originals.items():
        for name in images.classes:
            make_folder(output / split / name)
            resizing.remove_unfinished(output / split / name)
        for first in range(0, len(images), _CHUNK):
            paths = [images.path(i) for i in range(first, min(first + _CHUNK, len(images)))]
            yield [(path, str(output / split / os.path.relpath(path, images.folder))) for path in paths], size


def _fill_folder(paths: list[tuple[str, str]], size: int) -> list[Done]:
    return [_fill_file(original, prepared, size) for original, prepared in paths]


def _fill_file(original: str, prepared: str, size: int) -> Done:
    try:
        if resizing.is_whole(prepared):
            return Done("there", original)
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
    """Stops whatever ``on_corrupt`` is: where a disk is gone, what is left would be taken for the whole set."""
    return Done("failed", path, f"{error}; call again, it goes on")


def _shard_jobs(originals: dict[str, FolderImages], output: Path, per_shard: int, size: int) -> Iterator[tuple]:
    """Of shards with ``(key, original, label)`` of each image."""
    for split, images in originals.items():
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        for number, first in enumerate(range(0, len(order), per_shard)):
            content = [
                (_key(images, i), images.path(i), int(images.labels[i])) for i in order[first : first + per_shard]
            ]
            yield str(output / f"{split}-{number:06d}.tar"), content, size


def _key(images: FolderImages, index: int) -> str:
    """Of its own for each image; a dot would end it."""
    return f"{index:08d}_{Path(images.path(index)).stem.replace('.', '_')}"


def _fill_shard(shard: str, content: list[tuple[str, str, int]], size: int) -> list[Done]:
    try:
        there = {place.key for place in shards.places(Path(shard))}
    except UnreadableError as error:
        if not error.missing:  # it may be whole
            return [_unreadable(shard, error)]
        there = set()
    except DataError:  # it is not whole
        there = set()
    results = [_sample(*entry, there, size) for entry in content]
    if any(done.kind == "failed" for done, _ in results):
        return [done for done, _ in results]
    out, samples = [done for done, _ in results], [sample for _, sample in results if sample]
    if {key for key, *_ in samples} == there:  # what is not in it is damaged
        return out
    if there:  # it is of other images: more of them were damaged then, or are now
        os.unlink(shard)
        return _fill_shard(shard, content, size)
    try:
        resizing.write(shard, shards.pack(samples))
    except OSError as error:
        out.append(Done("failed", shard, f"cannot write {shard}: {error.strerror or error}"))
    return out


def _sample(key: str, path: str, label: int, there: set[str], size: int) -> tuple[Done, tuple | None]:
    """What became of an image, and what goes into the shard of it; nothing of a damaged one."""
    if key in there:
        return Done("there", path), (key,)
    try:
        kind, image = resizing.small(path, size)
    except UnreadableError as error:
        return _unreadable(path, error), None
    except DataError as error:
        return Done("corrupt", path, str(error)), None
    return Done(kind, path), (key, image, "png" if image.startswith(b"\x89PNG") else "jpg", label)


def _check_left(originals: dict[str, FolderImages], corrupt: dict[str, str]) -> None:
    """Raises DataError if no image of a split or of a class could be read: no training could use what is left."""
    for images in originals.values():
        left = {int(images.labels[i]) for i in range(len(images)) if images.path(i) not in corrupt} if corrupt else None
        if left is not None and len(left) < len(images.classes):
            empty = next(name for label, name in enumerate(images.classes) if label not in left)
            raise DataError(
                f"no image of {os.path.join(images.folder, empty)} could be read ({len(corrupt):,} damaged in all), "
                f"nothing is prepared: {next(iter(corrupt.values()))}"
            )


def _checked(originals: dict[str, FolderImages], output: Path, corrupt: dict, per_shard: int) -> dict[str, int]:
    """Images per split, once there are as many as there were originals that could be read."""
    found = shards.open_shards(output) if per_shard else scan(output).values()
    images = dict(zip(SPLITS, map(len, found), strict=True))
    for split, original in originals.items():
        left = len(original) - sum(path.startswith(os.path.join(original.folder, "")) for path in corrupt)
        if images[split] != left:
            raise UserError(f"{output} has {images[split]:,} images in {split}, {left:,} were expected")
    return images
