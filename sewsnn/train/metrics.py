"""The metrics of a run: ``metrics.csv``, ``firing_rates.csv`` and TensorBoard event files."""

import contextlib
import csv
import io
import resource
import sys
from pathlib import Path

import torch

from sewsnn.analysis.monitor import MEASURES
from sewsnn.errors import UserError
from sewsnn.files import cannot_read, read_regular, write_text

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "train_accuracy5",
    "test_loss",
    "test_accuracy",
    "test_accuracy5",
    "average_accuracy",
    "average_accuracy5",
    "train_seconds",
    "train_images_per_second",
    "data_wait",
    "peak_memory_mib",
    "loss_scale",
    "corrupt_samples",
)


def write_csv(path: Path, rows: list[dict], columns: tuple[str, ...] = COLUMNS) -> None:
    """Writes one row per epoch; a missing value gives an empty field. The file is rewritten as a whole, so after a
    resume it has no rows of the lost part."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def rows_in(path: Path) -> int:
    """Returns the number of rows (epochs) in a CSV file; 0 if the file does not exist.

    Raises:
        UserError: the file cannot be read now.
    """
    try:
        return max(0, read_regular(path).count(b"\n") - 1)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise cannot_read(str(path), error, UserError) from None


def write_firing_rates(path: Path, history: list[dict], rates: list[dict[str, float]]) -> None:
    """Writes ``firing_rates.csv``: one row per epoch, one column per neuron layer."""
    rows = [{"epoch": row["epoch"], **of_layers} for row, of_layers in zip(history, rates, strict=True)]
    if rows:
        write_csv(path, rows, tuple(rows[0]))


def write_blocks(path: Path, history: list[dict], blocks: list[dict[str, dict[str, float | None]]]) -> None:
    """Writes ``blocks.csv``: one row per epoch and block; :meth:`sewsnn.analysis.monitor.Monitor.row` has the columns
    after ``epoch`` and ``block``."""
    rows = [
        {"epoch": row["epoch"], "block": name, **values}
        for row, of_blocks in zip(history, blocks, strict=True)
        for name, values in of_blocks.items()
    ]
    write_csv(path, rows, ("epoch", "block", *MEASURES))


def write_corrupt(path: Path, found: set[str]) -> set[str]:
    """Writes ``corrupt.txt``: one line for each sample that was left out. Lines from before a resume stay.

    Returns:
        All lines.

    Raises:
        UserError: the file cannot be read now, or cannot be written.
    """
    found, before = {text.replace("\n", " ") for text in found}, set()
    try:
        before = set(read_regular(path).decode(errors="surrogateescape").split("\n")) - {""}
    except FileNotFoundError:
        pass
    except OSError as error:
        raise cannot_read(str(path), error, UserError) from None
    if found - before:
        write_text(path, "".join(f"{text}\n" for text in sorted(found | before)))
    return found | before


def peak_memory_mib(device: torch.device) -> float:
    """Returns the peak memory of this process so far, in MiB: on CUDA the memory allocated on the GPU, on the CPU the
    resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class TensorBoard:
    """Writes scalars to ``<folder>/tensorboard`` per epoch, and to its folder ``steps`` every ``train.log_steps``
    steps. Points that a killed run left at or after ``first_epoch`` and ``first_step`` are hidden.

    Raises:
        UserError: TensorBoard is not installed, or its files cannot be written.
    """

    def __init__(self, folder: Path, first_epoch: int, first_step: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "training writes TensorBoard files and needs tensorboard. Run pip install 'sewsnn[train]'"
            ) from None
        self._folder = folder / "tensorboard"
        with self._writing():
            self._writer = SummaryWriter(str(self._folder), purge_step=first_epoch)
            self._steps = SummaryWriter(str(self._folder / "steps"), purge_step=first_step)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._folder}: {error.strerror or error}") from error

    def add(self, row: dict, rates: dict[str, float], blocks: dict[str, dict[str, float | None]]) -> None:
        """Adds the metrics of an epoch."""
        with self._writing():
            for name in COLUMNS[1:]:
                if row[name] is not None:
                    group, _, rest = name.partition("_")
                    tag = f"{group}/{rest}" if group in ("train", "test", "average") else name
                    self._writer.add_scalar(tag, row[name], row["epoch"])
            for layer, rate in rates.items():
                self._writer.add_scalar(f"firing_rate/{layer}", rate, row["epoch"])
            for block, values in blocks.items():
                for name, value in values.items():
                    if value is not None:
                        self._writer.add_scalar(f"blocks/{block}/{name}", value, row["epoch"])
            self._writer.flush()

    def add_step(self, values: dict[str, float], step: int) -> None:
        """Adds the values of a step, counted from the beginning of the run."""
        with self._writing():
            for name, value in values.items():
                self._steps.add_scalar(f"step/{name}", value, step)

    def close(self) -> None:
        with self._writing():
            self._writer.close()
            self._steps.close()
