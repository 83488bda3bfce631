"""Collects the whole state of a run for a checkpoint, and restores it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sewsnn.data.source import identity, other_data
from sewsnn.errors import CheckpointError, UserError, out_of_memory
from sewsnn.files import exists
from sewsnn.train import checkpoint, metrics
from sewsnn.train.config import Config, differences, from_dict
from sewsnn.train.contents import check_fit
from sewsnn.train.result import RESULT
from sewsnn.train.schema import FREE
from sewsnn.train.sums import Sums

if TYPE_CHECKING:
    from sewsnn.train.loop import Trainer


def find(folder: Path, resume: bool | str) -> tuple[dict[str, Any] | None, str]:
    """Reads the checkpoint from which a run continues.

    Args:
        folder: the folder of the run.
        resume: False, True or ``"auto"``, as for :class:`~sewsnn.train.loop.Trainer`.

    Returns:
        ``(content, note)``: the checkpoint, or None for a new run, and what to print about it.

    Raises:
        UserError: the folder holds a run and ``resume`` is False, or it holds none and ``resume`` is True.
    """
    if resume == "auto":
        found = checkpoint.newest(folder)
        # The first row may be written before the first checkpoint.
        if found[0] is None and (exists(folder / RESULT) or metrics.rows_in(folder / "metrics.csv") > 1):
            raise CheckpointError(
                f"{folder} holds the results of a run but no checkpoint, and a new run would overwrite them; remove "
                "the folder or choose another --output"
            )
        return found
    if resume and not exists(folder / checkpoint.NAME) and exists(folder / "config.yaml"):
        older = ", ".join(path.name for path in checkpoint.others(folder))
        how = f" (the folder has {older})" if older else " (the run stopped before its first one)"
        raise CheckpointError(
            f"the checkpoint {folder / checkpoint.NAME} does not exist{how}; --resume auto continues with what exists"
        )
    if resume:
        return checkpoint.read(folder / checkpoint.NAME)
    if checkpoint.holds_run(folder):
        raise UserError(
            f"{folder} already holds a run. Continue it with --resume (--resume auto also works if the run stopped "
            "before its first checkpoint), or choose another folder with --output"
        )
    return None, ""


def check_same(saved: dict[str, Any], config: Config, world: int, folder: Path) -> None:
    """Checks that the checkpoint was made with the same settings. Allowed differences:

    - Keys that do not affect the mathematics (:data:`sewsnn.train.schema.FREE`).
    - ``data.batch_size``, ``train.accumulate`` and the number of processes, if all processes together train on the same
      number of samples per optimizer step. A process group that has shrunk or grown (elastic torchrun) continues with
      its new batches.
    - ``train.epochs``, unless the learning rate so far depended on it (cosine).

    Raises:
        CheckpointError: another setting differs; the message names the keys.
    """
    before = from_dict(saved["config"])
    free = set(FREE)
    if _global_batch(before, saved["world"]) == _global_batch(config, world):
        free |= {"data.batch_size", "train.accumulate"}
    if config.schedule.name != "cosine" and config.train.epochs >= saved["epoch"]:
        free.add("train.epochs")
    changed = [key for key in differences(before.to_dict(), config.to_dict()) if key not in free]
    if changed:
        raise CheckpointError(
            f"{folder / checkpoint.NAME} was made with other settings ({', '.join(changed)}); resume with the same "
            "settings, or start a new run with --output"
        )


def _same_batches(trainer: "Trainer", saved: dict[str, Any]) -> bool:
    batch = from_dict(saved["config"]).data.batch_size
    return (batch, saved["world"]) == (trainer.config.data.batch_size, trainer.processes.world)


def _global_batch(config: Config, world: int) -> int:
    """Returns the number of samples per optimizer step."""
    return config.data.batch_size * config.train.accumulate * world


def collect(trainer: "Trainer") -> dict[str, Any]:
    """Returns the state of the run, as :func:`sewsnn.train.checkpoint.save` takes it. All processes must call this."""
    stepper, processes = trainer.stepper, trainer.processes
    running = trainer.sums.values(processes)
    watched = None
    if trainer.monitor is not None:
        watched = {"sums": processes.sum(trainer.monitor.sums).tolist(), "history": trainer.blocks}
    optimizer = trainer.optimizer.state_dict()
    for group in optimizer["param_groups"]:
        group["lr"] = float(group["lr"])  # with CUDA graphs it is a tensor
    return {
        "config": trainer.config.to_dict(),
        "model": trainer.model.state_dict(),
        "average": None if stepper.average is None else stepper.average.state_dict(),
        "optimizer": optimizer,
        "scaler": stepper.scaler.state_dict(),
        "rng": processes.gather(checkpoint.get_rng()),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "data": identity(trainer.source),
        "samples": trainer.step * trainer.config.data.batch_size * processes.world,
        "world": processes.world,
        "running": running,
        "history": trainer.history,
        "firing_rates": trainer.rates,
        "monitor": watched,
        "seconds": trainer.elapsed(),
    }


def restore(trainer: "Trainer", saved: dict[str, Any]) -> None:
    """Restores the state that :func:`collect` returned, and sets the message that says where the run continues.

    Raises:
        CheckpointError: the state does not fit the configuration or the data.
    """
    stepper, processes, path = trainer.stepper, trainer.processes, trainer.folder / checkpoint.NAME
    steps = trainer.source.steps_per_epoch
    if _same_batches(trainer, saved) and saved["step"] > steps:
        raise CheckpointError(
            f"{path} does not fit the data: it is at step {saved['step']:,} of an epoch with {steps:,} steps"
        )
    if words := other_data(saved["data"], identity(trainer.source)):
        raise CheckpointError(
            f"{path} was trained on other data ({words}); data.root must hold the same data, in any location"
        )
    own = [(group["fused"], group["lr"]) for group in trainer.optimizer.param_groups]
    try:
        check_fit(saved, trainer.model, stepper.average, trainer.optimizer)
        trainer.model.load_state_dict(saved["model"])
        trainer.optimizer.load_state_dict(saved["optimizer"])
        for group, (fused, rate) in zip(trainer.optimizer.param_groups, own, strict=True):
            group["fused"] = fused  # the present device decides this, not that of the checkpoint
            if isinstance(rate, Tensor):  # the schedule sets its value before each step
                group["lr"] = rate
        stepper.scaler.load_state_dict(saved["scaler"])
        if stepper.average is not None:
            stepper.average.load_state_dict(saved["average"])
        same_world = saved["world"] == processes.world
        if same_world:
            checkpoint.set_rng(saved["rng"][processes.rank])
    except Exception as error:  # torch raises many types of errors for unexpected content
        if out_of_memory(error):
            raise CheckpointError(f"not enough memory to resume from {path}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} does not fit the configuration: {reason}") from None
    batch = trainer.config.data.batch_size * processes.world
    trainer.epoch, trainer.step = saved["epoch"], min(saved["samples"] // batch, steps)
    if trainer.step < steps:  # not at the end of the epoch: its last optimizer step may take fewer batches
        trainer.step -= trainer.step % trainer.config.train.accumulate
    # These are the sums over all processes, so only rank 0 continues with them.
    trainer.sums = Sums(trainer.device, saved["running"] if processes.is_first else None)
    trainer.sums.seconds, trainer.sums.waited = saved["running"]["seconds"], saved["running"]["waited"]
    trainer.history, trainer.rates, trainer.seconds = saved["history"], saved["firing_rates"], saved["seconds"]
    if trainer.monitor is not None:
        _restore_monitor(trainer, saved["monitor"], path)
    words = [trainer.message] if trainer.message else []
    words.append(f"resumed at epoch {trainer.epoch + 1}, step {trainer.step}")
    if not same_world:
        before, now = (
            _global_batch(from_dict(saved["config"]), saved["world"]),
            _global_batch(trainer.config, processes.world),
        )
        again = max(0, saved["samples"] - trainer.step * batch)
        words.append(
            f"with {processes.world} processes instead of {saved['world']}, and {now} samples per optimizer step "
            f"instead of {before}"
            + ("" if now == before else " (the learning rate is not changed)")
            + (f"; {again} samples of this epoch are repeated" if again else "")
        )
    trainer.message = "\n".join(words)


def _restore_monitor(trainer: "Trainer", saved: dict[str, Any], path: Path) -> None:
    """Restores the sums of the monitor, which only rank 0 continues with, and its history."""
    sums = trainer.monitor.sums
    shape = [len(row) for row in saved["sums"]]
    if shape != [sums.shape[1]] * len(sums):
        raise CheckpointError(f"{path} does not fit the network: monitor.sums must be {list(sums.shape)} numbers")
    if trainer.processes.is_first:
        sums.copy_(torch.tensor(saved["sums"], dtype=sums.dtype))
    trainer.blocks = saved["history"]
