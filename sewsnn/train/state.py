"""The whole state of a run: into a checkpoint, and out of one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """The checkpoint to go on from, and what there is to say about it.

    Raises:
        UserError: the folder holds a run and none is to be resumed, or none and one is.
    """
    if resume == "auto":
        found = checkpoint.newest(folder)
        # The first row may be there before the first checkpoint.
        if found[0] is None and (exists(folder / RESULT) or metrics.rows_in(folder / "metrics.csv") > 1):
            raise CheckpointError(
                f"{folder} has the results of a run, and no checkpoint any more: nothing is begun anew over them; "
                "remove the folder, or name another --output"
            )
        return found
    if resume and not exists(folder / checkpoint.NAME) and exists(folder / "config.yaml"):
        older = ", ".join(path.name for path in checkpoint.others(folder))
        how = f" (it has {older})" if older else " (the run was stopped before its first one)"
        raise CheckpointError(
            f"there is no checkpoint {folder / checkpoint.NAME}{how}: --resume auto goes on with what is there"
        )
    if resume:
        return checkpoint.read(folder / checkpoint.NAME)
    if checkpoint.holds_run(folder):
        raise UserError(
            f"{folder} already holds a run: --resume goes on with it (--resume auto: also where it was stopped before "
            "its first checkpoint), --output names another folder"
        )
    return None, ""


def check_same(saved: dict[str, Any], config: Config, world: int, folder: Path) -> None:
    """Raises CheckpointError if the run was made with other settings. Batches may be spread over other processes, as
    long as all of them together train on as many samples per optimizer step; a group of processes that has shrunk or
    grown (elastic torchrun) goes on with the batches it has now. More epochs may follow, unless the learning rate so
    far was one of fewer (cosine)."""
    before = from_dict(saved["config"])
    free = set(FREE)
    if _global_batch(before, saved["world"]) == _global_batch(config, world):
        free |= {"data.batch_size", "train.accumulate"}
    if config.schedule.name != "cosine" and config.train.epochs >= saved["epoch"]:
        free.add("train.epochs")
    changed = [key for key in differences(before.to_dict(), config.to_dict()) if key not in free]
    if changed:
        raise CheckpointError(
            f"{folder / checkpoint.NAME} was made with other settings ({', '.join(changed)}): resume with the same, or "
            "start a new run with --output"
        )


def _same_batches(trainer: "Trainer", saved: dict[str, Any]) -> bool:
    batch = from_dict(saved["config"]).data.batch_size
    return (batch, saved["world"]) == (trainer.config.data.batch_size, trainer.processes.world)


def _global_batch(config: Config, world: int) -> int:
    """Samples per optimizer step."""
    return config.data.batch_size * config.train.accumulate * world


def collect(trainer: "Trainer") -> dict[str, Any]:
    """What :func:`sewsnn.train.checkpoint.save` takes; to be called by all processes."""
    stepper, processes = trainer.stepper, trainer.processes
    running = trainer.sums.values(processes)
    return {
        "config": trainer.config.to_dict(),
        "model": trainer.model.state_dict(),
        "average": None if stepper.average is None else stepper.average.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
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
        "seconds": trainer.elapsed(),
    }


def restore(trainer: "Trainer", saved: dict[str, Any]) -> None:
    """Puts back what :func:`collect` collected, and says where the run goes on.

    Raises:
        CheckpointError: it does not fit the configuration.
    """
    stepper, processes, path = trainer.stepper, trainer.processes, trainer.folder / checkpoint.NAME
    steps = trainer.source.steps_per_epoch
    if _same_batches(trainer, saved) and saved["step"] > steps:
        raise CheckpointError(f"{path} does not fit its data: step {saved['step']:,} of an epoch of {steps:,}")
    if words := other_data(saved["data"], identity(trainer.source)):
        raise CheckpointError(
            f"{path} was trained on other data ({words}): data.root must hold the same, wherever it is"
        )
    fused = [group["fused"] for group in trainer.optimizer.param_groups]
    try:
        check_fit(saved, trainer.model, stepper.average, trainer.optimizer)
        trainer.model.load_state_dict(saved["model"])
        trainer.optimizer.load_state_dict(saved["optimizer"])
        for group, of_device in zip(trainer.optimizer.param_groups, fused, strict=True):
            group["fused"] = of_device  # not of the one the checkpoint was made on
        stepper.scaler.load_state_dict(saved["scaler"])
        if stepper.average is not None:
            stepper.average.load_state_dict(saved["average"])
        same_world = saved["world"] == processes.world
        if same_world:
            checkpoint.set_rng(saved["rng"][processes.rank])
    except Exception as error:  # torch raises many kinds for what it does not expect
        if out_of_memory(error):
            raise CheckpointError(f"too little memory to go on from {path}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} does not fit its configuration: {reason}") from None
    batch = trainer.config.data.batch_size * processes.world
    trainer.epoch, trainer.step = saved["epoch"], min(saved["samples"] // batch, steps)
    if trainer.step < steps:  # at the end it stays: the last optimizer step may take fewer
        trainer.step -= trainer.step % trainer.config.train.accumulate
    # The sums are those of all processes: one of them goes on with them.
    trainer.sums = Sums(trainer.device, saved["running"] if processes.is_first else None)
    trainer.sums.seconds, trainer.sums.waited = saved["running"]["seconds"], saved["running"]["waited"]
    trainer.history, trainer.rates, trainer.seconds = saved["history"], saved["firing_rates"], saved["seconds"]
    words = [trainer.message] if trainer.message else []
    words.append(f"resumed at epoch {trainer.epoch + 1}, step {trainer.step}")
    if not same_world:
        before, now = (
            _global_batch(from_dict(saved["config"]), saved["world"]),
            _global_batch(trainer.config, processes.world),
        )
        again = max(0, saved["samples"] - trainer.step * batch)
        words.append(
            f"with {processes.world} processes, before {saved['world']}; a step takes {now} samples, before {before}"
            + ("" if now == before else " (the learning rate is not changed)")
            + (f"; {again} samples of this epoch come again" if again else "")
        )
    trainer.message = "\n".join(words)
