"""Trains many configurations as ordinary runs in sub-folders, several at once, and goes on after a kill.

Each :class:`Cell` is a run of :func:`sewsnn.train.loop.train` in a folder of its own, so it has all files of a run and
``sewsnn train --resume`` or ``sewsnn eval`` work there. A sweep that was stopped at any moment continues when it is
called again: finished runs are read, others continue from their checkpoint.
"""

import contextlib
import copy
import csv
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sewsnn.errors import UserError, one_line
from sewsnn.experiments.worker import DIVERGED, command
from sewsnn.files import exists, make_folder, read_regular, text_of
from sewsnn.locking import FolderLock
from sewsnn.progress import Bar, say
from sewsnn.train.config import Config, differences, load_config
from sewsnn.train.metrics import rows_in
from sewsnn.train.result import RESULT
from sewsnn.train.schema import FREE
from sewsnn.train.signals import Interrupted, Signals

_LOOK = 0.5  # seconds between two looks at the runs
_STOPPING = 600.0  # seconds that a run may take to save after a signal
_NUMBERS = ("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: its folder below the folder of the sweep, such as ``ADD-2020``.
        config: its configuration; :func:`run_cells` sets ``output`` and ``name``.
    """

    name: str
    config: Config


class Outcome(NamedTuple):
    """The result of a run.

    Attributes:
        name: the name of the cell.
        config: the configuration of the cell.
        folder: the folder of the run.
        history: one dictionary per epoch: ``epoch`` (from 0), ``lr``, ``train_loss``, ``train_accuracy``,
            ``test_loss``, ``test_accuracy`` (accuracies in [0, 1]).
        diverged: why the run diverged; empty: it did not.
    """

    name: str
    config: Config
    folder: Path
    history: list[dict[str, float]]
    diverged: str

    @property
    def accuracy(self) -> float | None:
        """Test accuracy of the last epoch in [0, 1]; None: the run diverged."""
        return None if self.diverged else self.history[-1]["test_accuracy"]

    @property
    def best(self) -> float | None:
        """Test accuracy of the best epoch in [0, 1]; None: the run diverged."""
        return None if self.diverged else max(row["test_accuracy"] for row in self.history)


def run_cells(cells: Sequence[Cell], folder: Path, jobs: int = 0) -> list[Outcome]:
    """Trains all cells, those that are finished excepted.

    Args:
        cells: the runs, with names that differ.
        folder: the folder of the sweep; the runs are in it.
        jobs: runs at once; 0 (default): as many as the processors that this process may use hold with
            ``train.threads`` threads each; on CUDA one per GPU.

    Returns:
        One :class:`Outcome` per cell, in the order of ``cells``.

    Raises:
        UserError: a run failed or cannot start (the message names it), the folder holds a run with other settings, or
            another process trains there.
        Interrupted: SIGINT or SIGTERM arrived; all runs are saved.
    """
    cells = [_placed(cell, folder) for cell in cells]
    if len({cell.name for cell in cells}) < len(cells):
        raise UserError(f"two runs of the sweep in {folder} have the same name; their settings are too close")
    with FolderLock(folder, "trained in"):
        open_cells = [cell for cell in cells if not _is_finished(cell)]
        if open_cells:
            _Pool(cells, open_cells, folder, jobs).run()
    return [_outcome(cell) for cell in cells]


def _placed(cell: Cell, folder: Path) -> Cell:
    config = copy.deepcopy(cell.config)
    config.output, config.name = str(folder / cell.name), cell.name
    if _on_cpu(config) and not config.train.threads:
        config.train.threads = 1  # as many runs at once as there are processors; results depend on no machine
    return Cell(cell.name, config)


def _on_cpu(config: Config) -> bool:
    return config.train.device == "cpu" or (config.train.device == "auto" and not torch.cuda.is_available())


def _is_finished(cell: Cell) -> bool:
    """Returns whether the run has a result, or has diverged, with these settings.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    folder = cell.config.folder
    if not exists(folder / "config.yaml"):
        return False
    before = load_config(folder / "config.yaml")
    finished = exists(folder / RESULT) or exists(folder / DIVERGED)
    free = FREE | {"train.threads"} if finished else FREE
    changed = differences(before.to_dict(), cell.config.to_dict())
    if found := [key for key in changed if key not in free]:
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(found)}); choose another --output, or remove it"
        )
    old, new = before.data.root, cell.config.data.root  # a run that continues compares the data themselves
    if finished and old != new and (old is None or new is None or os.path.realpath(old) != os.path.realpath(new)):
        raise UserError(
            f"{folder} holds a finished run on the data in {old}, not in {new}; choose another --output, or give the "
            "same --data.root"
        )
    return finished


def _outcome(cell: Cell) -> Outcome:
    folder, diverged = cell.config.folder, ""
    if exists(folder / DIVERGED):
        diverged = one_line(read_regular(folder / DIVERGED).decode(errors="replace")) or "diverged"
    history, path = [], folder / "metrics.csv"
    try:
        if exists(path):
            rows = csv.DictReader(text_of(read_regular(path)).splitlines())
            history = [{key: float(row[key]) for key in _NUMBERS} for row in rows]
        complete = bool(diverged) or len(history) == cell.config.train.epochs
    except (ValueError, TypeError, KeyError, csv.Error):  # ValueError: also bytes that are no text
        complete = False
    if not complete:
        raise UserError(f"{path} is missing, damaged or incomplete; remove {folder} to train this run again")
    return Outcome(cell.name, cell.config, folder, history, diverged)


def processors() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """The worker processes of a sweep."""

    def __init__(self, cells: list[Cell], waiting: list[Cell], folder: Path, jobs: int):
        self.cells, self.waiting, self.logs = cells, list(waiting), folder / "logs"
        make_folder(self.logs)
        settings = cells[0].config.train
        on_cpu = _on_cpu(cells[0].config)
        self.gpus = torch.cuda.device_count() if settings.device in ("auto", "cuda") and not on_cpu else 0
        each = max(1, processors() // settings.threads) if on_cpu else self.gpus or 1  # cuda:N: one run on this GPU
        self.jobs = min(jobs or each, len(waiting))
        self.started: list[subprocess.Popen] = []
        self.running: dict[subprocess.Popen, Cell] = {}
        self.epochs = {cell.name: _epochs_done(cell) for cell in cells}

    def run(self) -> None:
        """Trains the waiting cells."""
        each = self.cells[0].config.train.epochs
        finished = len(self.cells) - len(self.waiting)
        before = f" ({finished} finished before)" if finished else ""
        say(f"{len(self.cells)} runs of {each} epochs{before}, {self.jobs} at a time; logs in {self.logs}")
        total = sum(cell.config.train.epochs for cell in self.cells)
        self.selector = selectors.DefaultSelector()
        with Signals() as signals, self._workers(), Bar(total=total, unit="epoch", desc="training runs") as bar:
            bar.n = bar.initial = sum(self.epochs.values())
            bar.refresh()
            while self.running:
                for key, _ in self.selector.select(_LOOK):
                    self._answered(key.data)
                for cell in self.running.values():
                    self.epochs[cell.name] = max(self.epochs[cell.name], _epochs_done(cell))
                bar.update(sum(self.epochs.values()) - bar.n)
                if signals.received:
                    self._stop()
                    raise Interrupted(f"stopped by {signals.name}; the runs in {self.logs.parent} are saved")

    @contextlib.contextmanager
    def _workers(self) -> Iterator[None]:
        """Starts the workers, and ends them in any case."""
        try:
            for number in range(self.jobs):
                self._start(number)
            yield
        finally:
            self._stop()

    def _start(self, number: int) -> None:
        environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # of torchrun: a worker has no other processes
            environment.pop(name, None)
        if self.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            own = number % self.gpus
            environment["CUDA_VISIBLE_DEVICES"] = visible[own] if visible != [""] else str(own)
        if self.cells[0].config.train.threads:
            environment["OMP_NUM_THREADS"] = str(self.cells[0].config.train.threads)
        worker = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on
        )
        self.started.append(worker)
        self.selector.register(worker.stdout, selectors.EVENT_READ, worker)
        self._next(worker)

    def _next(self, worker: subprocess.Popen) -> None:
        """Gives the worker its next run, or ends it."""
        if not self.waiting:
            self.running.pop(worker, None)
            self.selector.unregister(worker.stdout)
            worker.stdin.close()
            return
        cell = self.running[worker] = self.waiting.pop(0)
        run = {"name": cell.name, "config": cell.config.to_dict(), "log": str(self.logs / f"{cell.name}.log")}
        with contextlib.suppress(BrokenPipeError):  # the end of the worker is noticed at its answer
            worker.stdin.write((json.dumps(run) + "\n").encode())
            worker.stdin.flush()

    def _answered(self, worker: subprocess.Popen) -> None:
        cell, line = self.running[worker], worker.stdout.readline()
        if not line:
            code = worker.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise UserError(
                f"the process of the run {cell.name} ended ({how}); see {self.logs / (cell.name + '.log')}. The same "
                "command continues"
            )
        answer: dict[str, Any] = json.loads(line)
        if answer["outcome"] in ("error", "failed"):
            see = f"; see {self.logs / (cell.name + '.log')}" if answer["outcome"] == "failed" else ""
            raise UserError(f"run {cell.name}: {answer['message']}{see}")
        if answer["outcome"] == "stopped":  # somebody signalled the worker alone
            raise Interrupted(f"the run {cell.name} was stopped")
        self.epochs[cell.name] = cell.config.train.epochs
        found = _outcome(cell)
        say(f"{cell.name}: " + ("diverged" if found.diverged else f"test accuracy {100 * found.accuracy:.2f} %"))
        self._next(worker)

    def _stop(self) -> None:
        """Ends the workers; those that train save first."""
        for worker in self.started:
            with contextlib.suppress(OSError):
                worker.stdin.close()
            if worker in self.running:
                worker.terminate()
        until = time.monotonic() + _STOPPING
        for worker in self.started:
            try:
                worker.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            worker.stdout.close()
        self.started, self.running = [], {}


def _epochs_done(cell: Cell) -> int:
    return rows_in(cell.config.folder / "metrics.csv")
