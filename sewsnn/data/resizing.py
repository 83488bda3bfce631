"""Resizes images in several processes. A file is either complete or does not exist."""

import contextlib
import io
import multiprocessing
import os
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

from sewsnn.data import crops, decoding
from sewsnn.errors import DataError, UnreadableError, UserError

QUALITY = 95
TEMPORARY = ".preparing-"  # prefix of the name of a file that is being written
_TEXT = re.compile(r"\.[\w.-]+\.(json|npz)\.[0-9a-f]{8}")  # temporary files of sewsnn.files.write_atomic


class Done(NamedTuple):
    """The result for an image. ``kind`` is ``resized``, ``copied``, ``kept`` (exists from an earlier call),
    ``corrupt`` or ``failed``."""

    kind: str
    path: str
    reason: str = ""


def small(path: str, size: int) -> tuple[str, bytes]:
    """Resizes an image so that its shorter side has ``size`` pixels.

    Returns:
        ``("resized", JPEG bytes)``, or ``("copied", original bytes)`` if the image is not larger than that.

    Raises:
        DataError: the image is damaged; the message names it.
    """
    data = decoding.read_file(path)
    image = decoding.decode(data, path)
    if min(image.height, image.width) <= size:
        return "copied", data
    from PIL.Image import Resampling

    height, width = crops.resized(image.height, image.width, size)
    file = io.BytesIO()
    image.resize((width, height), Resampling.BILINEAR).save(file, "JPEG", quality=QUALITY)
    return "resized", file.getvalue()


def is_whole(path: str) -> bool:
    """Returns whether the file holds a complete image; after a crash of the machine, a renamed file may be empty."""
    try:
        decoding.whole_size(decoding.read_file(path), path)
        return True
    except UnreadableError as error:
        if not error.missing:
            raise
        return False
    except DataError:
        return False


def write(path: str, data: bytes) -> None:
    """Writes a temporary file beside the target and renames it. It is not flushed to the disk; the caller flushes once,
    after the last file."""
    folder = os.path.dirname(path)
    # The name is unique: a worker of a killed call may still be writing the same image for a moment.
    temporary = os.path.join(folder, TEMPORARY + secrets.token_hex(8))
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes half-written files of a killed call from a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) or _TEXT.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # its process has just renamed it
                    os.unlink(entry.path)


def run(work: Callable[..., list[Done]], jobs: Iterator[tuple], workers: int, stop: bool) -> Iterator[Done]:
    """Runs ``work(*job)`` in ``workers`` processes, a few jobs ahead, and yields the result of each image in any order.

    Raises:
        UserError: a file cannot be written, or a process was killed.
        DataError: an image is damaged and ``stop`` is true.
    """
    pending = set()
    with _pool(workers) as pool:
        while True:
            while len(pending) < 2 * workers and (job := next(jobs, None)) is not None:
                pending.add(pool.submit(work, *job))
            if not pending:
                return
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for done in (done for future in finished for done in future.result()):
                if done.kind == "failed":
                    raise UserError(done.reason)
                if done.kind == "corrupt" and stop:
                    raise DataError(f"{done.reason}. Use --on-corrupt skip to leave damaged images out", done.path)
                yield done


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end when this process ends."""
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            "a worker process that resizes images was killed; memory may be too small for this number of --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
