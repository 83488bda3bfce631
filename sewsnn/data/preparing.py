"""From a data set's original files to what training reads fastest: :func:`prepare`."""

import importlib
import os
from pathlib import Path

from sewsnn.errors import UserError, by_nearness, short

_MOST_WORKERS, _MOST_PIXELS = 1024, 2**14

# Each module has prepare(name, root, output, *, workers, size, on_corrupt) -> str, the report to print.
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
    """Prepares a data set; stopped at any moment, it goes on when called again.

    Args:
        name: ``imagenet``, ``dvs128_gesture`` or ``cifar10_dvs``.
        root, output: folders of the original files and of the prepared ones.
        workers: processes; 0: one per processor.
        size: ImageNet: pixels of the shorter side.
        per_shard: ImageNet: so many images in each WebDataset shard; 0: folders of image files.
        on_corrupt: ``stop`` at a damaged file, or ``skip`` it and list it in the report. One that cannot be read at all
            stops in any case: its disk may be gone.

    Returns:
        What was done, to print.

    Raises:
        UserError: no such data set, or a folder cannot be read or written; DataError: a file is damaged; named.
    """
    if name not in _MODULES:
        raise UserError(
            f"there is nothing to prepare for {short(name)}, only for {', '.join(by_nearness(name, _MODULES))}"
        )
    if per_shard < 0 or (per_shard and name != "imagenet"):
        raise UserError(f"per_shard must be >= 0, and is for imagenet only; got {per_shard} for {name}")
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
    """Raises UserError unless there is something at the path, or can be."""
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except ValueError as error:  # a NUL
        raise UserError(f"{key} must be a path, got {short(os.fspath(path))}: {error}") from None
    except OSError as error:
        raise UserError(f"{key}: cannot use {short(os.fspath(path))}: {error.strerror}") from None


def _processors() -> int:
    """That this process may use: of a shared machine often a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
