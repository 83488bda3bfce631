"""Checkpoints of a training run: written atomically, loaded with ``weights_only=True``.

A file is a dictionary with these keys:

- ``format``, ``version``, ``versions`` (of sewsnn, torch and Python), ``config``
- ``model``, ``average`` (the moving average of the weights, or None), ``optimizer``, ``scaler``
- ``rng``: the state of the random number generators of every process
- ``epoch`` and ``step``: the next to run; ``samples``: samples of the epoch that are done
- ``data``: the number of samples and a checksum of the class names (files of older versions have none)
- ``world``: number of processes; ``running``: sums of the epoch so far
- ``history`` (metrics) and ``firing_rates``: one row per epoch; ``seconds``: training time so far
- ``monitor``: ``sums`` of the epoch so far and ``history``, one row per epoch; None without ``train.monitor``

The permutation of the data and the learning rate are not stored: they follow from the seed, the epoch and the step.
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
from sewsnn.files import names_in, read_tensors, save_tensors, write_atomic
from sewsnn.train.contents import CONTENTS, check_contents

FORMAT = "sewsnn.train"
VERSION = 2
NAME = "checkpoint.pt"
BEST = "best.pt"
KEYS = CONTENTS.keys() - {"format", "version", "versions"}  #: the keys that :func:`save` expects


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint. If that fails, the old file stays.

    Args:
        path: the file.
        content: a dictionary with :data:`KEYS`.

    Raises:
        UserError: the file cannot be written; the message names it.
    """
    assert content.keys() == KEYS, content.keys() ^ KEYS
    versions = {"sewsnn": sewsnn.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    target = Path(os.path.realpath(path))
    if (
        path.is_symlink()
        and target.name in {p.name for p in others(path.parent)}
        and target.parent.samefile(path.parent)
    ):
        _link(path, path)  # a user linked to an older checkpoint to go back to it: do not overwrite that file
    head = {"format": FORMAT, "version": VERSION, "versions": versions}
    save_tensors(path, head | content)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint.

    Args:
        path: the file.

    Returns:
        Its content; the module's docstring lists the keys.

    Raises:
        DamagedError: the bytes differ from those that were written.
        CheckpointError: the file is missing, cannot be read now, was not written by ``sewsnn train``, or has missing or
            invalid entries (:data:`~sewsnn.train.contents.CONTENTS`); the message names it.
    """
    return read(path)[0]


def read(path: Path) -> tuple[dict[str, Any], str]:
    """Returns the content as :func:`load`, and a remark about the file for the user, which is usually empty."""
    content, note = read_tensors(path)
    if not isinstance(content, dict) or _plain(content.get("format")) != FORMAT:
        raise CheckpointError(f"{path} was not written by sewsnn train: its format is not {FORMAT!r}")
    if _plain(content.get("version")) != VERSION:
        raise CheckpointError(
            f"{path} has version {short(content.get('version'))} of the format; this sewsnn reads version {VERSION}"
        )
    check_contents(content, path)
    return content, note


def _plain(value: Any) -> Any:
    """Returns the value if it is text or an integer, else None: comparing a tensor would compare each of its values."""
    return value if type(value) in (str, int) else None


def kept(folder: Path) -> list[Path]:
    """Returns the checkpoints of single epochs in a folder, the newest first.

    Raises:
        UserError: the folder cannot be read now.
    """
    return [folder / _of_epoch(epoch) for epoch in sorted(_epochs(folder), reverse=True)]


def others(folder: Path) -> list[Path]:
    """Returns the checkpoints from which a run can continue if :data:`NAME` is missing or damaged, the newest first.

    Raises:
        UserError: the folder cannot be read now.
    """
    return kept(folder) + [folder / BEST] * (BEST in names_in(folder))


def _of_epoch(epoch: int) -> str:
    return f"checkpoint-{epoch:04d}.pt"


def _epochs(folder: Path) -> set[int]:
    """Returns the epochs that have a checkpoint. Files with other forms of the name are ignored: sewsnn did not write
    them."""
    found = (re.fullmatch(r"checkpoint-(\d{4,18})\.pt", name, re.ASCII) for name in names_in(folder))
    return {int(match[1]) for match in found if match and match[0] == _of_epoch(int(match[1]))}


def keep(folder: Path, epoch: int, most: int, best: bool) -> None:
    """Keeps a second name (a hard link, which takes no space) for the checkpoint of the folder.

    Checkpoints of later epochs exist if the run continued from an older one. They stay until the run reaches their
    epoch.

    Args:
        folder: the folder of the run.
        epoch: number of epochs done; the name is ``checkpoint-EPOCH.pt``.
        most: how many such checkpoints to keep; 0: none.
        best: also keep it as ``best.pt``.

    Raises:
        UserError: the file cannot be written.
    """
    if most:
        _link(folder / NAME, folder / _of_epoch(epoch))
        for old in sorted((e for e in _epochs(folder) if e <= epoch), reverse=True)[most:]:
            with contextlib.suppress(OSError):
                (folder / _of_epoch(old)).unlink()
    if best:
        _link(folder / NAME, folder / BEST)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.link")
    with contextlib.suppress(OSError):  # the target does not exist
        # Renaming one hard link of a file to another one of the same file does nothing.
        if not target.is_symlink() and os.path.samefile(source, target):
            temporary.unlink(missing_ok=True)
            return
    try:
        temporary.unlink(missing_ok=True)
        os.link(os.path.realpath(source), temporary)  # if the source is a link, its target
        os.replace(temporary, target)
    except OSError:  # the file system has no hard links, or is gone
        try:
            with open(source, "rb") as file:
                write_atomic(target, lambda out: shutil.copyfileobj(file, out))
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def newest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Reads the newest undamaged checkpoint of a folder; the best one if all others are missing or damaged.

    Args:
        folder: the folder of the run.

    Returns:
        ``(content, note)``. The note is empty, or says that newer checkpoints are damaged or missing, or is a remark
        about the file. ``(None, "")`` if there is no checkpoint.

    Raises:
        UserError: a checkpoint cannot be read now or holds something else; it may be newer than the others, and a run
            that continued from an older one would overwrite it. Or all checkpoints are damaged; a new run would
            overwrite them.
    """
    there = set(names_in(folder))
    paths = [folder / NAME] * (NAME in there) + others(folder)
    problems = []
    for path in paths:
        try:
            content, note = read(path)
        except DamagedError as error:
            problems.append(str(error))
            continue
        if path.name != NAME and not problems:
            problems.append(f"{folder / NAME} is missing")
        words = [f"{'; '.join(problems)}; continuing from {path.name} instead"] if problems else []
        return content, "\n".join(words + [note] * bool(note))
    if problems:
        raise CheckpointError(f"no checkpoint in {folder} can be read: {'; '.join(problems)}")
    return None, ""


def holds_run(folder: Path) -> bool:
    """Returns whether the folder holds files of a run that another run would overwrite.

    Raises:
        UserError: the folder cannot be read now.
    """
    return bool({NAME, BEST, "config.yaml"}.intersection(names_in(folder)) or kept(folder))


def sweep(folder: Path) -> None:
    """Removes half-written files of killed processes; such a file may be as large as a checkpoint."""
    pattern = re.compile(r"\.[\w-]+\.(pt|yaml|csv|json|png|txt)\.([0-9a-f]{8}|link)")
    for name in names_in(folder):
        if pattern.fullmatch(name):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def get_rng() -> dict[str, Any]:
    """Returns the states of torch's random number generators in this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng(state: dict[str, Any]) -> None:
    """Restores the states that :func:`get_rng` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
