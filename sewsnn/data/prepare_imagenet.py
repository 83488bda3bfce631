"""``sewsnn data prepare imagenet``: images made small once, so that training decodes a quarter of the pixels.

The output has the folders and file names of the original. An image's shorter side becomes ``size`` (never more than it
was), with Pillow's antialiased bilinear filter, the one the test transform would use, and is written as a JPEG of
quality 95 with chroma at half the resolution, as the originals have it. Images that are not larger are copied byte for
byte. Crops in training come from the small images: less detail in small crops than with the originals.

Every file is written beside its place and renamed. ``preparing.json`` is in the folder from the first moment, and
makes training refuse it, until ``prepared.json`` says how many images there are.
"""

import fcntl
import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sewsnn.data import crops, decoding
from sewsnn.data.image_folder import PREPARED, SPLITS, UNFINISHED, FolderImages, read_json, scan
from sewsnn.errors import DataError, UserError
from sewsnn.files import make_folder, write_text

QUALITY = 95
_TEMPORARY = ".preparing-"  # begins the name of a file that is being written
_CHUNK = 64  # images a process is given at once
_VERSION = 1


class Done(NamedTuple):
    """What became of an image: ``resized``, ``copied``, ``there`` (from an earlier call), ``corrupt``, ``failed``."""

    kind: str
    path: str
    reason: str = ""


def prepare(name: str, root: Path, output: Path, *, workers: int, size: int, on_corrupt: str) -> str:
    """See :func:`sewsnn.data.preparing.prepare`.

    Raises:
        UserError: a folder cannot be read or written, or another call is at it; DataError: an image is damaged.
    """
    if output.resolve() == root.resolve() or root.resolve() in output.resolve().parents:
        raise UserError(f"--output must lie outside {root}, got {output}")
    originals = scan(root)
    settings = {"version": _VERSION, "name": name, "size": size, "quality": QUALITY}
    make_folder(output)
    with _locked(output):
        begun = read_json(output / UNFINISHED)
        finished = read_json(output / PREPARED)
        for found in (begun, finished):
            if found is not None and (changed := [key for key in settings if found.get(key) != settings[key]]):
                raise UserError(
                    f"{output} was prepared with {changed[0]} {found.get(changed[0])}, not {settings[changed[0]]}: "
                    "remove it, or name another --output"
                )
        write_text(output / UNFINISHED, json.dumps(settings) + "\n")
        for split in SPLITS:
            _make_classes(output / split, originals[split].classes)
        counts, corrupt = _convert(originals, output, workers, size, on_corrupt)
        images = _checked(originals, output, corrupt)
        os.sync()  # the images before what says that they are there
        write_text(
            output / PREPARED, json.dumps(settings | {"images": images, "corrupt": corrupt, **counts}, indent=1) + "\n"
        )
        (output / UNFINISHED).unlink()
    return _report(output, images, counts, corrupt)


def _convert(originals: dict[str, FolderImages], output: Path, workers: int, size: int, on_corrupt: str):
    """Counts by kind, and reasons by path of the images left out."""
    counts, corrupt = dict.fromkeys(("resized", "copied", "there"), 0), {}
    jobs = _jobs(originals, output)
    with _pool(workers) as pool, tqdm(total=sum(map(len, originals.values())), unit="image", mininterval=0.5) as bar:
        pending = set()
        while True:
            while len(pending) < 4 * workers and (job := next(jobs, None)) is not None:
                pending.add(pool.submit(_convert_chunk, job, size, on_corrupt == "stop"))
            if not pending:
                return counts, corrupt
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for done in (done for future in finished for done in future.result()):
                if done.kind == "failed":
                    raise UserError(done.reason)
                if done.kind == "corrupt" and on_corrupt == "stop":
                    raise DataError(f"{done.reason}; --on-corrupt skip leaves such images out", done.path)
                if done.kind == "corrupt":
                    corrupt[done.path] = done.reason
                else:
                    counts[done.kind] += 1
                bar.update()


def _jobs(originals: dict[str, FolderImages], output: Path) -> Iterator[list[tuple[str, str]]]:
    """Chunks of ``(original, prepared)``."""
    for split, images in originals.items():
        for first in range(0, len(images), _CHUNK):
            paths = [images.path(i) for i in range(first, min(first + _CHUNK, len(images)))]
            yield [(path, str(output / split / os.path.relpath(path, images.folder))) for path in paths]


def _convert_chunk(job: list[tuple[str, str]], size: int, stop: bool) -> list[Done]:
    out = []
    for original, prepared in job:
        out.append(_convert_image(original, prepared, size))
        if out[-1].kind == "failed" or (stop and out[-1].kind == "corrupt"):
            break
    return out


def _convert_image(original: str, prepared: str, size: int) -> Done:
    try:
        if _is_whole(prepared):
            return Done("there", original)
        data = decoding.read_file(original)
        image = decoding.decode(data, original)
        height, width = image.height, image.width
        kind = "copied"
        if min(height, width) > size:
            kind, small = "resized", crops.resized(height, width, size)
            file = io.BytesIO()
            image.resize((max(1, small[1]), max(1, small[0])), 2).save(file, "JPEG", quality=QUALITY)  # 2: bilinear
            data = file.getvalue()
        _write(prepared, data)
        return Done(kind, original)
    except DataError as error:
        return Done("corrupt", original, str(error))
    except OSError as error:
        return Done("failed", original, f"cannot write {prepared}: {error.strerror or error}")


def _is_whole(path: str) -> bool:
    """Whether an earlier call finished this file: after a crash of the machine a renamed file may still be empty."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        decoding.whole_size(data, path)
        return True
    except (OSError, DataError):
        return False


def _write(path: str, data: bytes) -> None:
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, _TEMPORARY + name)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _make_classes(folder: Path, classes: list[str]) -> None:
    """A folder per class, without what a killed call left half-written."""
    for name in classes:
        make_folder(folder / name)
        for entry in os.scandir(folder / name):
            if entry.name.startswith(_TEMPORARY):
                os.unlink(entry.path)


def _checked(originals: dict[str, FolderImages], output: Path, corrupt: dict[str, str]) -> dict[str, int]:
    """Images per split, once there are as many as there were originals that could be read."""
    images = {split: len(found) for split, found in scan(output).items()}
    for split, found in originals.items():
        left = len(found) - sum(path.startswith(os.path.join(found.folder, "")) for path in corrupt)
        if images[split] != left:
            raise UserError(
                f"{output / split} has {images[split]:,} images, {left:,} were expected: another wrote to it"
            )
    return images


@contextmanager
def _locked(output: Path):
    """Only one call at a time; the lock ends with the process, however that ends."""
    with open(output / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output} is being prepared by another process") from None
        yield


@contextmanager
def _pool(workers: int):
    """Processes that end with this one."""
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError("a process that resizes images was killed (too little memory for --workers?)") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _report(output: Path, images: dict[str, int], counts: dict[str, int], corrupt: dict[str, str]) -> str:
    lines = [
        f"{output}: {images['train']:,} training and {images['val']:,} test images ("
        + ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
        + ")"
    ]
    if corrupt:
        lines += [f"{len(corrupt):,} left out:", *(f"  {reason}" for reason in corrupt.values())]
    return "\n".join(lines)
