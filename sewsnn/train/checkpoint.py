"""Checkpoints of a training run: written atomically, loaded with ``weights_only=True``.

A file is a dictionary: ``format``, ``version``, ``versions`` (of programs), ``config``, ``model``, ``average`` (the
moving average of the weights, or None), ``optimizer``, ``scaler``, ``rng`` (of every process), ``epoch`` and ``step``
(the next to run), ``samples`` (of the epoch, that are done), ``world``, ``running`` (sums of the epoch so far),
``history`` (a row per epoch), ``firing_rates`` (likewise) and ``seconds``. The order of the data and the learning rate
need nothing more: they follow from the seed, the epoch and the step.
"""

import contextlib
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import torch

import sewsnn
from sewsnn.errors import CheckpointError, DamagedError, UserError, short
from sewsnn.files import is_there, load_tensors, names_in, open_regular, write_atomic
from sewsnn.train.contents import CHECKS, check_content

FORMAT = "sewsnn.train"
VERSION = 2
NAME = "checkpoint.pt"
BEST = "best.pt"
KEYS = set(CHECKS)


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; on any failure the old one stays.

    Raises:
        UserError: it cannot be written.
    """
    assert content.keys() == KEYS, content.keys() ^ KEYS
    versions = {"sewsnn": sewsnn.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    head = {"format": FORMAT, "version": VERSION, "versions": versions}
    write_atomic(path, lambda file: torch.save(head | content, file))


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint.

    Raises:
        DamagedError: the file is truncated or damaged.
        CheckpointError: it is missing, cannot be read for the moment, is no checkpoint of this program, or an entry is
            not what it should be; names the file and the entry.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by sewsnn train: it has no format {FORMAT!r}")
    version = content.get("version")
    if version != VERSION or isinstance(version, bool):
        raise CheckpointError(f"{path} has version {short(version)} of the format, this program reads {VERSION}")
    check_content(content, str(path))
    return content


def kept(folder: Path) -> list[Path]:
    """The checkpoints of single epochs in a folder, the newest first.

    Raises:
        UserError: the folder cannot be read.
    """
    pattern = re.compile(r"checkpoint-(\d+)\.pt")
    found = {int(match[1]): folder / name for name in names_in(folder) if (match := pattern.fullmatch(name))}
    return [found[epoch] for epoch in sorted(found, reverse=True)]


def keep(folder: Path, epoch: int, most: int, best: bool) -> None:
    """Keeps the folder's checkpoint as that of ``epoch`` besides, at most ``most`` of them, and as the best so far. The
    same file under another name costs no space.

    Raises:
        UserError: it cannot.
    """
    if most:
        _link(folder / NAME, folder / f"checkpoint-{epoch:04d}.pt")
        for old in kept(folder)[most:]:
            with contextlib.suppress(OSError):
                old.unlink()
    if best:
        _link(folder / NAME, folder / BEST)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        try:
            os.replace(temporary, target)
        finally:  # still there if both are links to one file already: then rename does nothing
            temporary.unlink(missing_ok=True)
    except OSError:  # a file system without links, or none at all any more
        try:
            with open_regular(source) as file:
                write_atomic(target, lambda out: shutil.copyfileobj(file, out))
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from None


def newest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest checkpoint of a folder that is not damaged; the best one if all others are gone or damaged.

    Returns:
        ``(content, "")``; with a sentence where it is an older one, since newer ones are damaged; ``(None, "")`` if
        there is none at all.

    Raises:
        UserError: a checkpoint is there and cannot be read for the moment, or is of another kind or version: it may be
            whole, and a run that went on from an older one would write over it. Or all of them are damaged: nothing is
            begun anew over them.
    """
    paths = [path for path in (folder / NAME, *kept(folder), folder / BEST) if is_there(path)]
    problems = []
    for path in paths:
        try:
            content = load(path)
        except DamagedError as error:
            problems.append(str(error))
            continue
        if path.name != NAME and not problems:
            problems.append(f"{folder / NAME} is missing")
        return content, f"{'; '.join(problems)}: going on from {path.name} instead" if problems else ""
    if problems:
        raise CheckpointError(f"no checkpoint in {folder} can be read: {'; '.join(problems)}")
    return None, ""


def holds_run(folder: Path) -> bool:
    """Whether there is anything of a run in the folder that another one would write over. Raises UserError if that
    cannot be known."""
    return any(is_there(folder / name) for name in (NAME, BEST, "config.yaml")) or bool(kept(folder))


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written; of a checkpoint it takes as much space as the whole."""
    pattern = re.compile(r"\.[\w-]+\.(pt|yaml|csv|json|png|txt)\.([0-9a-f]{8}|link)")
    for name in names_in(folder):
        if pattern.fullmatch(name):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)


def get_rng() -> dict[str, Any]:
    """The state of torch's random number generators in this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng(state: dict[str, Any]) -> None:
    """Puts back what :func:`get_rng` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
