"""Converts the original files of a data set to the files that training reads fastest: :func:`prepare`."""

import importlib
import os
from pathlib import Path

from sewsnn.errors import UserError, by_nearness, short

_MOST_WORKERS, _MOST_PIXELS = 1024, 2**14

# Each module has prepare(name, root, output, *, workers, size, on_corrupt) -> str, which returns the report.
_MODULES = {
    "cifar10_dvs": "sewsnn.data.prepare_events",
    "dvs128_gesture": "sewsnn.data.prepare_events",
    "imagenet": "sewsnn.data.prepare_imagenet",
}


def prepare(
    name: str,
    root: str | Path,
    output: str | Path,
    *,
    workers: int = 0,
    size: int = 256,
    on_corrupt: str = "stop",
    per_shard: int = 0,
) -> str:
    """Prepares a data set for training. A call that was stopped at any moment resumes when you repeat it.

    Args:
        name: ``imagenet``, ``dvs128_gesture`` or ``cifar10_dvs``.
        root: folder of the original files.
        output: folder of the prepared files; it must be outside ``root``.
        workers: number of worker processes; 0 (default): one per processor that this process may use.
        size: ImageNet only: length of the shorter side in pixels (default 256).
        on_corrupt: ``"stop"`` (default) raises at a damaged file. ``"skip"`` leaves damaged files out and lists them in
            the report. An I/O error always aborts, even with ``"skip"``: the file may be fine and the disk gone.
        per_shard: ImageNet only: number of images per WebDataset shard; 0 (default) writes folders of image files.

    Returns:
        The report to print.

    Raises:
        UserError: the data set is unknown, an argument is out of range, or a folder cannot be read or written.
        DataError: a file is damaged; the message names it.
    """
    if name not in _MODULES:
        raise UserError(f"{short(name)} cannot be prepared; choose one of {', '.join(by_nearness(name, _MODULES))}")
    if per_shard < 0 or (per_shard and name != "imagenet"):
        raise UserError(f"per_shard must be >= 0 and is available for imagenet only; got {per_shard} for {name}")
    if not 0 <= workers <= _MOST_WORKERS or not 1 <= size <= _MOST_PIXELS or on_corrupt not in ("stop", "skip"):
        raise UserError(
            f"workers must be 0 to {_MOST_WORKERS}, size 1 to {_MOST_PIXELS}, on_corrupt stop or skip; got "
            f"{short(workers)}, {short(size)}, {short(on_corrupt)}"
        )
    _check_path("root", root)
    _check_path("output", output)
    module = importlib.import_module(_MODULES[name])
    workers = workers or _processors()
    extra = {"per_shard": per_shard} if per_shard else {}
    return module.prepare(name, Path(root), Path(output), workers=workers, size=size, on_corrupt=on_corrupt, **extra)


def _check_path(key: str, path: str | Path) -> None:
    """Raises UserError if the path cannot exist. A path that does not exist yet is allowed."""
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except ValueError as error:  # the path has a NUL character
        raise UserError(f"{key} must be a path, got {short(os.fspath(path))}: {error}") from None
    except OSError as error:
        raise UserError(f"{key}: cannot use {short(os.fspath(path))}: {error.strerror}") from None


def _processors() -> int:
    """Returns the number of processors that this process may use; on a shared machine often a few of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
