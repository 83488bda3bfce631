"""Metrics of a run: ``metrics.csv`` and TensorBoard event files."""

import contextlib
import csv
import io
from pathlib import Path

from sewsnn.errors import UserError
from sewsnn.files import write_text

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "train_seconds",
    "train_images_per_second",
)


def write_csv(path: Path, history: list[dict]) -> None:
    """One row per epoch. Written whole: after a resume it holds no row of the part that was lost."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


class TensorBoard:
    """Scalars per epoch under ``<folder>/tensorboard``; points a killed run left from ``first_epoch`` on are hidden.

    Raises:
        UserError: TensorBoard is not installed, or its files cannot be written.
    """

    def __init__(self, folder: Path, first_epoch: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("training writes TensorBoard files: pip install 'sewsnn[train]'") from None
        self._folder = folder / "tensorboard"
        with self._writing():
            self._writer = SummaryWriter(str(self._folder), purge_step=first_epoch)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._folder}: {error.strerror or error}") from error

    def add(self, row: dict) -> None:
        with self._writing():
            for name in COLUMNS[1:]:
                group, _, rest = name.partition("_")
                tag = f"{group}/{rest}" if rest else name
                self._writer.add_scalar(tag, row[name], row["epoch"])
            self._writer.flush()

    def add_firing_rates(self, rates: dict[str, float], epoch: int) -> None:
        with self._writing():
            for layer, rate in rates.items():
                self._writer.add_scalar(f"firing_rate/{layer}", rate, epoch)

    def close(self) -> None:
        with self._writing():
            self._writer.close()
