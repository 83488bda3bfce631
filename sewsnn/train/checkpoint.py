"""Checkpoints of a training run: written atomically, loaded with ``weights_only=True``.

A file is a dictionary: ``format``, ``version``, ``versions`` (of programs), ``config``, ``model``, ``average`` (the
moving average of the weights, or None), ``optimizer``, ``scaler``, ``rng`` (of every process), ``epoch`` and ``step``
(the next to run), ``samples`` (of the epoch, that are done), ``data`` (how many samples and which classes the
run is trained on; older files have none), ``world``, ``running`` (sums of the epoch so far), ``history`` (a row per
epoch), ``firing_rates`` (likewise) and ``seconds``. The order of the data and the learning rate need nothing more: they
follow from the seed, the epoch and the step.
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
KEYS = CONTENTS.keys() - {"format", "version", "versions"}  #: what :func:`save` takes


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; on any failure the old one stays.

    Raises:
        UserError: it cannot be written.
    """
    assert content.keys() == KEYS, content.keys() ^ KEYS
    versions = {"sewsnn": sewsnn.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    target = Path(os.path.realpath(path))
    if (
        path.is_symlink()
        and target.name in {p.name for p in others(path.parent)}
        and target.parent.samefile(path.parent)
    ):
        _link(path, path)  # somebody went back to that one in this way: it is not written over
    head = {"format": FORMAT, "version": VERSION, "versions": versions}
    save_tensors(path, head | content)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint.

    Raises:
        DamagedError: its bytes are not those that were written.
        CheckpointError: the file is missing, cannot be read now, is not a checkpoint of this program, or does not hold
            what one must (:data:`~sewsnn.train.contents.CONTENTS`); names it.
    """
    return read(path)[0]


def read(path: Path) -> tuple[dict[str, Any], str]:
    """:func:`load`, and what should be known of the file; mostly nothing."""
    content, note = read_tensors(path)
    if not isinstance(content, dict) or _plain(content.get("format")) != FORMAT:
        raise CheckpointError(f"{path} was not written by sewsnn train: it has no format {FORMAT!r}")
    if _plain(content.get("version")) != VERSION:
        raise CheckpointError(
            f"{path} has version {short(content.get('version'))} of the format, this program reads {VERSION}"
        )
    check_contents(content, path)
    return content, note


def _plain(value: Any) -> Any:
    """What can be compared: a tensor would compare each of its values."""
    return value if type(value) in (str, int) else None


def kept(folder: Path) -> list[Path]:
    """The checkpoints of single epochs in a folder, the newest first.

    Raises:
        UserError: the folder cannot be read now.
    """
    return [folder / _of_epoch(epoch) for epoch in sorted(_epochs(folder), reverse=True)]


def others(folder: Path) -> list[Path]:
    """What a run can go on from if :data:`NAME` cannot be had, the newest first.

    Raises:
        UserError: the folder cannot be read now.
    """
    return kept(folder) + [folder / BEST] * (BEST in names_in(folder))


def _of_epoch(epoch: int) -> str:
    return f"checkpoint-{epoch:04d}.pt"


def _epochs(folder: Path) -> set[int]:
    """Of which there are checkpoints; what has another form of name was put there by somebody."""
    found = (re.fullmatch(r"checkpoint-(\d{4,18})\.pt", name, re.ASCII) for name in names_in(folder))
    return {int(match[1]) for match in found if match and match[0] == _of_epoch(int(match[1]))}


def keep(folder: Path, epoch: int, most: int, best: bool) -> None:
    """Keeps the folder's checkpoint as that of ``epoch`` besides, at most ``most`` of them, and as the best so far. The
    same file under another name costs no space. Those of later epochs, which a run has that went on from an older
    checkpoint, stay until it is there.

    Raises:
        UserError: it cannot.
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
    with contextlib.suppress(OSError):  # it is not there
        # Renaming a link to another link of the same file does nothing at all.
        if not target.is_symlink() and os.path.samefile(source, target):
            temporary.unlink(missing_ok=True)
            return
    try:
        temporary.unlink(missing_ok=True)
        os.link(os.path.realpath(source), temporary)  # of a link, the file that it leads to
        os.replace(temporary, target)
    except OSError:  # a file system without links, or none at all any more
        try:
            with open(source, "rb") as file:
                write_atomic(target, lambda out: shutil.copyfileobj(file, out))
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def newest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest whole checkpoint of a folder; the best one if all others are gone or damaged.

    Returns:
        ``(content, "")``; with a sentence where it is an older one, since newer ones are damaged, or where there is
        something else to know; ``(None, "")`` if there is none at all.

    Raises:
        UserError: one cannot be read now, or holds something else than a run's state: it may be worth more than the
            older ones, and a run that went on from those would write over it. Or there are checkpoints, and all are
            damaged: nothing is begun anew over them.
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
        words = [f"{'; '.join(problems)}: going on from {path.name} instead"] if problems else []
        return content, "\n".join(words + [note] * bool(note))
    if problems:
        raise CheckpointError(f"no checkpoint in {folder} can be read: {'; '.join(problems)}")
    return None, ""


def holds_run(folder: Path) -> bool:
    """Whether there is anything of a run in the folder that another one would write over.

    Raises:
        UserError: the folder cannot be read now.
    """
    return bool({NAME, BEST, "config.yaml"}.intersection(names_in(folder)) or kept(folder))


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written; of a checkpoint it takes as much space as the whole."""
    pattern = re.compile(r"\.[\w-]+\.(pt|yaml|csv|json|png|txt)\.([0-9a-f]{8}|link)")
    for name in names_in(folder):
        if pattern.fullmatch(name):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def get_rng() -> dict[str, Any]:
    """The state of torch's random number generators in this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng(state: dict[str, Any]) -> None:
    """Puts back what :func:`get_rng` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
