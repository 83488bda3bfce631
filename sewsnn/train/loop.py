"""The training loop: :func:`train`."""

import contextlib
import gc
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from sewsnn.analysis import firing_rates
from sewsnn.errors import UserError
from sewsnn.files import make_folder, write_text
from sewsnn.layers import convert_sync_batchnorm
from sewsnn.locking import FolderLock
from sewsnn.models import load_checkpoint
from sewsnn.progress import Progress, say, watched
from sewsnn.train import build, checkpoint, graph, metrics, state
from sewsnn.train.config import Config
from sewsnn.train.distributed import Processes
from sewsnn.train.evaluation import evaluate
from sewsnn.train.prefetch import Prefetch
from sewsnn.train.result import RESULT, epoch_line, result_lines, write_result
from sewsnn.train.schedule import factor, set_lr
from sewsnn.train.signals import Interrupted, Signals
from sewsnn.train.step import Step
from sewsnn.train.sums import Sums

__all__ = ["Interrupted", "Trainer", "train"]

_ASK_STEPS = 8  # steps between two exchanges of whether any process received a signal
_RATE_BATCHES = 10  # test batches over which firing rates are counted


class Trainer:
    """One run in one folder, in one process or, under torchrun, in several. No other process can train in the folder
    until :meth:`run` ends or :meth:`close` is called.

    Args:
        config: the configuration; see :mod:`sewsnn.train.schema`.
        resume: False (default): the folder must not hold a run. True: continue from the checkpoint in the folder.
            ``"auto"``: continue if there is a checkpoint, else start a new run.
        processes: the process group; None (default): joined from the environment variables of torchrun.

    Attributes:
        model: the network.
        source: the data set.
        history: one dictionary of metrics per epoch.
        rates: the firing rates of the layers, one dictionary per epoch.
        blocks: firing rates and gradient norms of the blocks, one dictionary per epoch, with ``train.monitor``.
        epoch: the next epoch to run, from 0.
        step: the next step of that epoch, from 0.

    Raises:
        UserError: a setting, the folder or the checkpoint is invalid, or another process trains in the folder.
    """

    def __init__(self, config: Config, resume: bool | str = False, processes: Processes | None = None):
        self.config, self.folder = config, config.folder
        self.processes = processes or Processes(config.train.device)
        self.device = build.choose_device(config.train.device, self.processes.local_rank)
        self.backend = build.backend_of(config, self.device)
        build.set_up_torch(config)
        graph.recorder(config, self.device, self.processes.world)  # raises an error before the data are opened
        self.message = ""  #: what to print about a resume
        self._lock = FolderLock(self.folder, "trained in")
        try:
            self._set_up(self._saved(resume))
        except BaseException:
            self._lock.release(unused=True)
            raise

    def _set_up(self, saved: dict | None) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        self.source = build.build_data(config, self.processes.rank, self.processes.world)
        self.model = build.build_model(config, self.source)
        if config.model.weights and not saved:
            self._say(load_checkpoint(self.model, config.model.weights))
        if config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if config.train.sync_bn:
            convert_sync_batchnorm(self.model)
        self.model.to(self.device)
        self.optimizer = build.build_optimizer(config, self.model)
        self.stepper = Step(config, self.model, self.optimizer, self.processes, self.source.num_classes)
        self.epoch, self.step = 0, 0
        self.history: list[dict] = []
        self.rates: list[dict[str, float]] = []
        self.monitor = self.stepper.monitor
        self.blocks: list[dict[str, dict[str, float | None]]] = []
        self.sums = Sums(self.device)
        self.seconds = 0.0
        self._since = time.perf_counter()
        self.signals = Signals()
        newest = bool(saved) and not self.message
        if saved:
            state.restore(self, saved)
        if self.processes.is_first:
            make_folder(self.folder)
            checkpoint.sweep(self.folder)
            write_text(self.folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
            if self.epoch < config.train.epochs:  # a result of fewer epochs may exist
                (self.folder / RESULT).unlink(missing_ok=True)
            if newest and self.epoch and not self.step:  # the run may have been killed between saving and this call
                self._keep()

    def run(self) -> dict | None:
        """Trains to the last epoch. Writes ``metrics.csv``, TensorBoard files, ``result.json`` and the figures into the
        folder.

        Returns:
            The content of ``result.json`` in rank 0, None in the other processes.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; everything up to the last step is saved.
            NonFinite: the loss or a gradient became infinite or NaN.
            UserError: the trainer was closed and another process now has the folder, or a file cannot be written.
        """
        self._first(self._lock.acquire, share=False)
        try:
            return self._run()
        finally:
            self.close()

    def _run(self) -> dict | None:
        config = self.config
        self._since, first = time.perf_counter(), self.epoch + self.step / self.source.steps_per_epoch
        board = self._board()
        try:
            with self.signals:
                while self.epoch < config.train.epochs:
                    self._train_epoch(board)
                    row = self._finish_epoch()
                    if board:
                        board.add(row, self.rates[-1], self.blocks[-1] if self.blocks else {})
                        self._write_metrics()
                    self.save()
                    if self.processes.is_first:
                        self._keep()
                        say(epoch_line(row, config.train.epochs, self._left(first)))
        finally:
            if board:
                board.close()
        if not self.processes.is_first:
            return None
        return write_result(
            self.folder,
            config,
            self.history,
            self.rates[-1],
            self.elapsed(),
            self.backend,
            self.processes.world,
        )

    def close(self) -> None:
        """Releases the lock on the folder, so that other processes can train in it."""
        self._lock.release()

    # ---- the epoch

    def _train_epoch(self, board: metrics.TensorBoard | None) -> None:
        self.model.train()
        settings, steps, sums = self.config.train, self.source.steps_per_epoch, self.sums
        before, waited = sums.seconds - time.perf_counter(), sums.waited
        batches = Prefetch(
            self.source.train_batches(self.epoch, self.step), self.device, self.source.to_float, settings.channels_last
        )
        title = f"epoch {self.epoch + 1}/{settings.epochs}"
        bar = Progress(title, steps, done=self.step, quiet=not self.processes.is_first)
        with bar, self.monitor or contextlib.nullcontext():
            for x, y in batches:
                first = self.step - self.step % settings.accumulate
                lr = self._set_lr(self.step)
                group = min(settings.accumulate, steps - first)
                last = self.step + 1 == first + group
                self.stepper.run(x, y, self.epoch, self.step, group, last, sums)
                self.step += 1
                bar.add(len(y) * self.processes.world)
                logs = self.step % settings.log_steps == 0
                if logs or self.device.type == "cpu":
                    self.stepper.check(sums, self.epoch, self._batch)
                sums.seconds, sums.waited = before + time.perf_counter(), waited + batches.waited
                if logs:
                    self._log(board, bar, lr)
                if last:
                    self._save_if_asked()
        if self.step != steps:
            raise UserError(f"epoch {self.epoch + 1} needs {steps} steps, but the data ended after step {self.step}")
        self.stepper.check(sums, self.epoch, self._batch)
        self.stepper.check_weights(self.epoch, self.step)
        sums.seconds = before + time.perf_counter()  # the GPU has finished all steps now

    def _set_lr(self, step: int) -> float:
        position = self.epoch + (step - step % self.config.train.accumulate) / self.source.steps_per_epoch
        return set_lr(self.optimizer, factor(self.config.schedule, self.config.train.epochs, position))

    def _batch(self, step: int):
        """Loads a batch of this epoch again."""
        batches = self.source.train_batches(self.epoch, step)
        return next(iter(Prefetch(islice(batches, 1), self.device, self.source.to_float)), None)

    def _save_if_asked(self) -> None:
        """Saves in the middle of an epoch, after a signal or every ``train.checkpoint_steps`` steps."""
        settings, steps = self.config.train, self.source.steps_per_epoch
        asks = self.processes.world == 1 or self.step == steps or self._is_time(_ASK_STEPS)
        stops = asks and self.processes.any(bool(self.signals.received))
        if stops or (settings.checkpoint_steps and self.step < steps and self._is_time(settings.checkpoint_steps)):
            self.stepper.check(self.sums, self.epoch, self._batch)
            self.stepper.check_weights(self.epoch, self.step)
            self.save()
        if stops:
            self._stop()

    def _stop_if_alone(self) -> None:
        """Stops during evaluation after a signal; a resume repeats the evaluation. Several processes finish the
        evaluation first: they have different numbers of batches, so they cannot exchange a message after each."""
        if self.processes.world == 1 and self.signals.received:
            self.save()
            self._stop()

    def _stop(self) -> None:
        raise Interrupted(f"stopped by {self.signals.name}; saved in {self.folder}")

    def _is_time(self, every: int) -> bool:
        """Returns whether the optimizer step that just ended reached a multiple of ``every`` steps."""
        return self.step // every > (self.step - self.config.train.accumulate) // every

    def _log(self, board: metrics.TensorBoard | None, bar: Progress, lr: float) -> None:
        sums = self.sums.values(self.processes)
        bar.set_postfix_str(f"loss {sums['loss'] / sums['samples']:.4f}", refresh=False)
        if board:
            board.add_step(
                {
                    "train_loss": sums["loss"] / sums["samples"],
                    "train_accuracy": sums["top1"] / sums["samples"],
                    "lr": lr,
                    "images_per_second": sums["samples"] / max(sums["seconds"], 1e-9),
                    "data_wait": sums["waited"] / max(sums["seconds"], 1e-9),
                    "memory_mib": metrics.peak_memory_mib(self.device),
                },
                self.epoch * self.source.steps_per_epoch + self.step,
            )

    def _finish_epoch(self) -> dict:
        config, sums = self.config, self.sums.values(self.processes)
        average = self.stepper.average
        models = [self.model] if average is None else [self.model, average.module]
        self.processes.share_buffers(*models)
        found = [self._evaluate(model) for model in models]
        corrupt = {text for of in self.processes.gather(self.source.corrupt) for text in of.values()}
        if self.processes.is_first:
            corrupt = metrics.write_corrupt(self.folder / "corrupt.txt", corrupt)
        row = {
            "epoch": self.epoch,
            "lr": self._set_lr(self.step - 1),
            "train_loss": sums["loss"] / sums["samples"],
            "train_accuracy": sums["top1"] / sums["samples"],
            "train_accuracy5": sums["top5"] / sums["samples"],
            "test_loss": found[0]["loss"],
            "test_accuracy": found[0]["accuracy"],
            "test_accuracy5": found[0]["accuracy5"],
            "average_accuracy": found[-1]["accuracy"] if average is not None else None,
            "average_accuracy5": found[-1]["accuracy5"] if average is not None else None,
            "train_seconds": sums["seconds"],
            "train_images_per_second": sums["samples"] / sums["seconds"],
            "data_wait": sums["waited"] / sums["seconds"],
            "peak_memory_mib": metrics.peak_memory_mib(self.device),
            "loss_scale": self.stepper.scaler.get_scale() if config.train.amp == "fp16" else None,
            "corrupt_samples": len(corrupt),
        }
        self.history.append(row)
        self.rates.append(self._firing_rates() if self.processes.is_first else {})
        if self.monitor is not None:
            self.blocks.append(self.monitor.row(self.processes.sum(self.monitor.sums)))
            self.monitor.start()
        self.epoch, self.step, self.sums = self.epoch + 1, 0, Sums(self.device)
        return row

    def _evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        settings = self.config.train
        return evaluate(
            model,
            self.source,
            self.device,
            self.processes,
            settings.test_amp,
            settings.channels_last,
            after_batch=self._stop_if_alone,
            title=f"epoch {self.epoch + 1}/{settings.epochs}, test{'' if model is self.model else ' of the average'}",
        )

    def _firing_rates(self) -> dict[str, float]:
        """Returns the firing rates over a part of the test set of rank 0; they stand for the run."""
        batches = islice(self.source.test_batches(), _RATE_BATCHES)
        batches = Prefetch(batches, self.device, self.source.to_float)
        steps = min(_RATE_BATCHES, self.source.test_steps)
        return firing_rates(self.model, (x for x, _ in watched(batches, "firing rates", steps)))

    # ---- state

    def save(self) -> None:
        """Writes the checkpoint. All processes must call this."""
        content = state.collect(self)
        if self.processes.is_first:
            checkpoint.save(self.folder / checkpoint.NAME, content)

    def _keep(self) -> None:
        """Keeps a second name for the checkpoint of the epoch that just ended."""
        best = max(range(self.epoch), key=lambda e: self.history[e]["test_accuracy"]) == self.epoch - 1
        checkpoint.keep(self.folder, self.epoch, self.config.train.keep, best)

    def elapsed(self) -> float:
        """Returns the seconds of training so far, including those before a resume."""
        return self.seconds + time.perf_counter() - self._since

    def _left(self, first: float) -> float:
        """Estimates the seconds until the end of the run from the epochs since this process began at ``first``; from
        the whole run if those are less than half an epoch."""
        since, done = time.perf_counter() - self._since, self.epoch - first
        per_epoch = since / done if done >= 0.5 else self.elapsed() / self.epoch
        return per_epoch * (self.config.train.epochs - self.epoch)

    def _saved(self, resume: bool | str) -> dict | None:
        """Returns the checkpoint to continue from, as rank 0 reads it."""

        def find():
            self._lock.acquire()  # take the lock before reading the folder
            found, self.message = state.find(self.folder, resume)
            if found:
                state.check_same(found, self.config, self.processes.world, self.folder)
            return found

        return self._first(find)

    def _first(self, work: Callable[[], Any], share: bool = True) -> Any:
        """Returns on all processes what ``work`` returns in rank 0 (None if not ``share``). A UserError in rank 0 is
        raised on all."""
        found = error = None
        if self.processes.is_first:
            try:
                found = work()
            except UserError as problem:
                error = problem
        found, error = self.processes.from_first((found if share else None, error))
        if error is not None:
            raise error
        return found

    def _board(self) -> metrics.TensorBoard | None:
        if not self.processes.is_first:
            return None
        self._write_metrics()
        first_step = self.epoch * self.source.steps_per_epoch + self.step
        return metrics.TensorBoard(self.folder, self.epoch, first_step + 1)

    def _write_metrics(self) -> None:
        metrics.write_csv(self.folder / "metrics.csv", self.history)
        metrics.write_firing_rates(self.folder / "firing_rates.csv", self.history, self.rates)
        if self.blocks:
            metrics.write_blocks(self.folder / "blocks.csv", self.history, self.blocks)

    def _say(self, text) -> None:
        if self.processes.is_first:
            say(str(text))


def train(config: Config, resume: bool | str = False) -> dict | None:
    """Trains a network as the configuration describes, prints the progress and the result, and writes all files of the
    run into ``config.folder``.

    Args:
        config: the configuration, for example from :func:`sewsnn.train.config.load_config`.
        resume: False (default): the folder must not hold a run. True: continue from the checkpoint in the folder.
            ``"auto"``: continue if there is a checkpoint, else start a new run.

    Returns:
        The content of ``result.json`` (accuracies in [0, 1], ``seconds``, ``firing_rates``, ...) in rank 0, None in the
        other processes of torchrun.

    Raises:
        UserError: a setting, a file or the folder is invalid; the message names it.
        Interrupted: SIGINT or SIGTERM arrived; the run was saved and can be resumed.
        NonFinite: the loss or a gradient became infinite or NaN; the last checkpoint is unchanged.
    """
    processes, failed, trainer = Processes(config.train.device), True, None
    try:
        trainer = Trainer(config, resume, processes)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        world = f", {processes.world} processes" if processes.world > 1 else ""
        trainer._say(
            f"{config.name}: {config.model.name}, {parameters:,} parameters, T = {config.model.T}, on {trainer.device} "
            f"with the {trainer.backend} backend{world}, in {trainer.folder}"
        )
        if trainer.message:
            trainer._say(trainer.message)
        result, failed = trainer.run(), False
    except Interrupted:  # raised on all processes together
        failed = False
        raise
    finally:
        if trainer is not None:
            trainer.close()
            trainer.stepper.release()
            gc.collect()  # DistributedDataParallel is part of reference cycles
        processes.leave(failed)
    if result is not None:
        say("\n".join(result_lines(result, config)))
        files = ("metrics.csv", "curves.png", "firing_rates.png", checkpoint.NAME)
        say("wrote " + ", ".join(str(Path(trainer.folder) / name) for name in files))
    return result
