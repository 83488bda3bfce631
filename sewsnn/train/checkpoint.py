"""Checkpoints of a training run: one file, written atomically, loaded with ``weights_only=True``.

The file is a dictionary: ``format``, ``version``, ``config``, ``model``, ``optimizer``, ``scheduler``, ``scaler``,
``rng``, ``epoch`` and ``step`` (the next to run), ``running`` (sums of the epoch so far), ``history`` (a row per epoch)
and ``seconds``. Data order needs nothing more: it follows from the seed, the epoch and the step.
"""

from pathlib import Path
from typing import Any

import torch

from sewsnn.errors import CheckpointError
from sewsnn.files import load_tensors, write_atomic

FORMAT = "sewsnn.train"
VERSION = 1
NAME = "checkpoint.pt"
_KEYS = {"config", "model", "optimizer", "scheduler", "scaler", "rng", "epoch", "step", "running", "history", "seconds"}


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; on any failure the old one stays.

    Raises:
        UserError: it cannot be written.
    """
    assert content.keys() == _KEYS, content.keys() ^ _KEYS
    write_atomic(path, lambda file: torch.save({"format": FORMAT, "version": VERSION, **content}, file))


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint.

    Raises:
        CheckpointError: the file is missing, truncated, or not a checkpoint of this program; names it.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by sewsnn train: it has no format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {content.get('version')} of the format, this program reads {VERSION}"
        )
    missing = _KEYS - content.keys()
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}")
    return content


def get_rng() -> dict[str, Any]:
    """The state of torch's random number generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng(state: dict[str, Any]) -> None:
    """Puts back what :func:`get_rng` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
