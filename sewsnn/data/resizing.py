"""Making images small in several processes, each file whole or not there."""

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
TEMPORARY = ".preparing-"  # begins the name of a file that is being written
_TEXT = re.compile(r"\.[\w.-]+\.(json|npz)\.[0-9a-f]{8}")  # what sewsnn.files.write_atomic writes before it is renamed


class Done(NamedTuple):
    """What became of an image: ``resized``, ``copied``, ``there`` (from an earlier call), ``corrupt``, ``failed``."""

    kind: str
    path: str
    reason: str = ""


def small(path: str, size: int) -> tuple[str, bytes]:
    """``("resized", JPEG)`` of an image whose shorter side is then ``size``, or ``("copied", its own bytes)`` where it
    is not larger.

    Raises:
        DataError: it is damaged; names it.
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
    """Whether there is an image: after a crash of the machine a renamed file may still be empty."""
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
    """Beside its place, then renamed. It is not flushed to the disk: whoever wrote the last does that for all."""
    folder = os.path.dirname(path)
    # A name of its own: a killed call's process may be at the same image for a moment.
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
    """What a killed call left half-written in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) or _TEXT.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # its process has just ended it
                    os.unlink(entry.path)


def run(work: Callable[..., list[Done]], jobs: Iterator[tuple], workers: int, stop: bool) -> Iterator[Done]:
    """``work(*job)`` in ``workers`` processes, a few jobs ahead; what each image became, in any order.

    Raises:
        UserError: a file cannot be written, or a process was killed; DataError: ``stop`` and an image is damaged.
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
                    raise DataError(f"{done.reason}; --on-corrupt skip leaves such images out", done.path)
                yield done


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one."""
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError("a process that resizes images was killed: too little memory for --workers?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
