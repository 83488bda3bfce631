"""The training loop: :func:`train`."""

import json
import platform
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import yaml
from torch import nn
from tqdm import tqdm

import sewsnn
from sewsnn.analysis import firing_rates
from sewsnn.analysis.figures import draw_curves, draw_firing_rates
from sewsnn.data import random_temporal_delete
from sewsnn.errors import CheckpointError, UserError
from sewsnn.files import make_folder, write_text
from sewsnn.models import load_checkpoint
from sewsnn.train import build, checkpoint, metrics
from sewsnn.train.config import Config, differences, from_dict

# Keys in which a resumed run may differ from the one it goes on with: they do not touch the mathematics.
_FREE_ON_RESUME = {
    "output",
    "name",
    "data.root",
    "train.checkpoint_steps",
    *(f"published.{field}" for field in ("test_accuracy", "last_test_accuracy", "source")),
}


class Interrupted(Exception):
    """SIGINT or SIGTERM: the run was saved and can be resumed."""


class Trainer:
    """One run in one folder.

    Args:
        config: see :mod:`sewsnn.train.config`.
        resume: go on from the folder's checkpoint. Otherwise the folder must not hold a run already.

    Raises:
        UserError: a setting, the folder or the checkpoint is not as it must be.
    """

    def __init__(self, config: Config, resume: bool = False):
        self.config = config
        self.folder = config.folder
        self.device = build.choose_device(config.train.device)
        self.backend = build.backend_of(config, self.device)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        saved = checkpoint.load(self.folder / checkpoint.NAME) if resume else None
        if saved:
            self._check_same(saved["config"])
        elif (self.folder / checkpoint.NAME).exists() or (self.folder / "config.yaml").exists():
            raise UserError(
                f"{self.folder} already holds a run: --resume goes on with it, --output names another folder"
            )
        torch.manual_seed(config.seed)
        self.source = build.build_data(config)
        self.model = build.build_model(config, self.source)
        if config.model.weights and not saved:
            print(load_checkpoint(self.model, config.model.weights))
        self.model.to(self.device)
        self.optimizer = build.build_optimizer(config, self.model)
        self.scheduler = build.build_scheduler(config, self.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.train.amp == "fp16")
        self.loss = nn.CrossEntropyLoss()
        self.epoch, self.step = 0, 0
        self.running = _no_sums()
        self.history: list[dict] = []
        self.seconds = 0.0
        self._since = time.perf_counter()
        self._signal: int | None = None
        make_folder(self.folder)
        if saved:
            self._restore(saved)
        else:
            write_text(self.folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))

    def run(self) -> dict:
        """Trains to the last epoch and writes ``metrics.csv``, TensorBoard files, ``result.json`` and the figures.

        Returns:
            What ``result.json`` holds.

        Raises:
            Interrupted: SIGINT or SIGTERM came; everything up to the last step is saved.
        """
        config = self.config
        metrics.write_csv(self.folder / "metrics.csv", self.history)
        board = metrics.TensorBoard(self.folder, first_epoch=self.epoch)
        self._since = time.perf_counter()
        try:
            with _Signals(self):
                while self.epoch < config.train.epochs:
                    self._train_epoch()
                    row = self._finish_epoch()
                    board.add(row)
                    metrics.write_csv(self.folder / "metrics.csv", self.history)
                    self._save()
                    tqdm.write(_line(row, config.train.epochs), file=sys.stdout)
            rates = firing_rates(
                self.model, (self.source.to_float(x.to(self.device)) for x, _ in self.source.test_batches())
            )
            board.add_firing_rates(rates, config.train.epochs - 1)
        finally:
            board.close()
        return self._finish(rates)

    # ---- the epoch

    def _train_epoch(self) -> None:
        self.model.train()
        started = time.perf_counter()
        before = self.running["seconds"]
        every = self.config.train.checkpoint_steps
        steps = self.source.steps_per_epoch
        title = f"epoch {self.epoch + 1}/{self.config.train.epochs}"
        with tqdm(total=steps, initial=self.step, desc=title, unit="step", leave=False, mininterval=0.5) as bar:
            for x, y in self.source.train_batches(self.epoch, self.step):
                self._train_step(x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True))
                self.step += 1
                self.running["seconds"] = before + time.perf_counter() - started
                bar.update()
                if self.step % 10 == 0:
                    bar.set_postfix_str(f"loss {self.running['loss'] / self.running['images']:.4f}", refresh=False)
                if self._signal is not None:
                    self._save()
                    raise Interrupted(f"stopped by {signal.Signals(self._signal).name}; saved in {self.folder}")
                if every and self.step % every == 0 and self.step < steps:
                    self._save()

    def _train_step(self, x, y) -> None:
        x = self.source.to_float(x)
        if self.config.data.T_train:
            x = random_temporal_delete(x, self.config.data.T_train)
        amp = self.config.train.amp
        dtype = torch.float16 if amp == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=amp != "off"):
            logits = self.model(x)
            loss = self.loss(logits, y)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.running["images"] += len(y)
        self.running["loss"] += loss.item() * len(y)
        self.running["correct"] += int((logits.argmax(1) == y).sum())

    def _finish_epoch(self) -> dict:
        sums = self.running
        test_loss, test_accuracy = self.evaluate()
        row = {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": sums["loss"] / sums["images"],
            "train_accuracy": sums["correct"] / sums["images"],
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "train_seconds": sums["seconds"],
            "train_images_per_second": sums["images"] / sums["seconds"],
        }
        self.scheduler.step()
        self.history.append(row)
        self.epoch, self.step, self.running = self.epoch + 1, 0, _no_sums()
        return row

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy on the test set, float32."""
        self.model.eval()
        images, loss, correct = 0, 0.0, 0
        for x, y in self.source.test_batches():
            x, y = self.source.to_float(x.to(self.device)), y.to(self.device)
            logits = self.model(x)
            loss += self.loss(logits, y).item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            images += len(y)
        return loss / images, correct / images

    # ---- state

    def _save(self) -> None:
        checkpoint.save(
            self.folder / checkpoint.NAME,
            {
                "config": self.config.to_dict(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": checkpoint.get_rng(),
                "epoch": self.epoch,
                "step": self.step,
                "running": self.running,
                "history": self.history,
                "seconds": self._elapsed(),
            },
        )

    def _restore(self, saved: dict) -> None:
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            self.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.folder / checkpoint.NAME} does not fit its configuration: {error}") from None
        checkpoint.set_rng(saved["rng"])
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.running, self.history, self.seconds = saved["running"], saved["history"], saved["seconds"]

    def _check_same(self, saved: dict) -> None:
        changed = [
            key for key in differences(from_dict(saved).to_dict(), self.config.to_dict()) if key not in _FREE_ON_RESUME
        ]
        if changed:
            raise CheckpointError(
                f"{self.folder / checkpoint.NAME} was made with other settings ({', '.join(changed)}): resume with the "
                "same, or start a new run with --output"
            )

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._since

    def _finish(self, rates: dict[str, float]) -> dict:
        last, name = self.history[-1], self.config.name
        result = {
            "test_accuracy": last["test_accuracy"],
            "best_test_accuracy": max(row["test_accuracy"] for row in self.history),
            "epochs": len(self.history),
            "seconds": self._elapsed(),
            "published": self.config.to_dict()["published"],
            "generated_data": bool(self.config.data.generated),
            "firing_rates": rates,
            "backend": self.backend,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "sewsnn": sewsnn.__version__,
        }
        write_text(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
        published = None if self.config.data.generated else self.config.published.test_accuracy
        draw_curves(self.history, name, self.folder / "curves.png", published)
        draw_firing_rates(rates, name, self.folder / "firing_rates.png")
        return result


def train(config: Config, resume: bool = False) -> dict:
    """Trains ``config`` in its folder, prints what a reader wants to know, returns the result. See :class:`Trainer`."""
    trainer = Trainer(config, resume)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{config.name}: {config.model.name}, {parameters:,} parameters, T = {config.model.T}, on {trainer.device} "
        f"with the {trainer.backend} backend, in {trainer.folder}"
    )
    if resume:
        print(f"resumed at epoch {trainer.epoch + 1}, step {trainer.step}")
    result = trainer.run()
    print(
        f"test accuracy {100 * result['test_accuracy']:.2f} % (best {100 * result['best_test_accuracy']:.2f} %) after "
        f"{result['epochs']} epochs in {result['seconds']:.1f} s"
    )
    if aim := _aim(config):
        print(aim)
    files = ("metrics.csv", "curves.png", "firing_rates.png", checkpoint.NAME)
    print("see " + ", ".join(str(Path(trainer.folder) / name) for name in files))
    return result


class _Signals:
    """While active, SIGINT and SIGTERM ask the loop to save and stop; a second one stops at once."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.old: dict[int, object] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._handle)

    def __exit__(self, *exception):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.trainer._signal = number
        signal.signal(number, self.old[number])


def _aim(config: Config) -> str:
    """What the result is to be compared with."""
    if config.data.generated:
        return "generated data: this result says nothing"
    best, last, source = config.published.test_accuracy, config.published.last_test_accuracy, config.published.source
    values = [f"{best:.2f} %"] if best is not None else []
    values += [f"last epoch {last:.2f} %"] if last is not None else []
    return f"published: {', '.join([*values, source])}" if values or source else ""


def _no_sums() -> dict:
    return {"images": 0, "loss": 0.0, "correct": 0, "seconds": 0.0}


def _line(row: dict, epochs: int) -> str:
    return (
        f"epoch {row['epoch'] + 1:>{len(str(epochs))}}/{epochs}  lr {row['lr']:.4g}  "
        f"train loss {row['train_loss']:.4f}  accuracy {100 * row['train_accuracy']:.2f} %  "
        f"test loss {row['test_loss']:.4f}  accuracy {100 * row['test_accuracy']:.2f} %  "
        f"{row['train_images_per_second']:.0f} images/s"
    )
