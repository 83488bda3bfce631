"""From a data set's original files to what training reads fastest: :func:`prepare`."""

import importlib
import os
from pathlib import Path

from sewsnn.errors import UserError

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
        raise UserError(f"there is nothing to prepare for {name!r}, only for {', '.join(_MODULES)}")
    if per_shard < 0 or (per_shard and name != "imagenet"):
        raise UserError(f"per_shard must be >= 0, and is for imagenet only; got {per_shard} for {name}")
    if workers < 0 or size < 1 or on_corrupt not in ("stop", "skip"):
        raise UserError(
            f"workers must be >= 0, size >= 1, on_corrupt stop or skip; got {workers}, {size}, {on_corrupt!r}"
        )
    module = importlib.import_module(_MODULES[name])
    workers = workers or _processors()
    extra = {"per_shard": per_shard} if per_shard else {}
    return module.prepare(name, Path(root), Path(output), workers=workers, size=size, on_corrupt=on_corrupt, **extra)


def _processors() -> int:
    """That this process may use: of a shared machine often a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
