"""The result of a finished run: ``result.json``, the figures and the printed lines."""

import json
import platform
from pathlib import Path

import torch

import sewsnn
from sewsnn.analysis.figures import draw_curves, draw_firing_rates
from sewsnn.files import write_text
from sewsnn.progress import time_left
from sewsnn.train.schema import Config

RESULT = "result.json"


def write_result(
    folder: Path, config: Config, history: list[dict], rates: dict[str, float], seconds: float, backend: str, world: int
) -> dict:
    """Writes ``result.json``, ``curves.png`` and ``firing_rates.png`` into ``folder``.

    Returns:
        The content of ``result.json``: accuracies of the last epoch and of the epoch with the best test accuracy, those
            of the moving average if there is one, and the settings and the machine of the run.
    """
    last, best = history[-1], max(history, key=lambda row: row["test_accuracy"])
    cuda = config.train.device != "cpu" and torch.cuda.is_available()
    result = {
        "test_accuracy": last["test_accuracy"],
        "test_accuracy5": last["test_accuracy5"],
        "best_test_accuracy": best["test_accuracy"],
        "best_epoch": best["epoch"],
        "epochs": len(history),
        "seconds": seconds,
        "corrupt_samples": last["corrupt_samples"],
        "published": config.to_dict()["published"],
        "generated_data": bool(config.data.generated),
        "firing_rates": rates,
        "backend": backend,
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "processes": world,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sewsnn": sewsnn.__version__,
    }
    if last["average_accuracy"] is not None:
        result["average_accuracy"] = last["average_accuracy"]
        result["best_average_accuracy"] = max(row["average_accuracy"] for row in history)
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    published = None if config.data.generated else config.published.test_accuracy
    draw_curves(history, config.name, folder / "curves.png", published)
    draw_firing_rates(rates, config.name, folder / "firing_rates.png")
    return result


def epoch_line(row: dict, epochs: int, left: float = 0.0) -> str:
    """Formats the metrics of an epoch as one line. ``left``: seconds until the end of the run; 0 (default) leaves that
    out."""
    average = "" if row["average_accuracy"] is None else f" (average {100 * row['average_accuracy']:.2f} %)"
    return (
        f"epoch {row['epoch'] + 1:>{len(str(epochs))}}/{epochs}  lr {row['lr']:.4g}  "
        f"train loss {row['train_loss']:.4f}  accuracy {100 * row['train_accuracy']:.2f} %  "
        f"test loss {row['test_loss']:.4f}  accuracy {100 * row['test_accuracy']:.2f} %{average}  "
        f"{row['train_images_per_second']:.0f} images/s, {100 * row['data_wait']:.0f} % of the time waiting for data"
        + (f", {time_left(left)} left" if left else "")
    )


def result_lines(result: dict, config: Config) -> list[str]:
    """Formats a result, and the published result to compare it with."""
    line = (
        f"test accuracy {100 * result['test_accuracy']:.2f} % (best {100 * result['best_test_accuracy']:.2f} %) after "
        f"{result['epochs']} epochs in {result['seconds']:.1f} s"
    )
    if "average_accuracy" in result:
        line += (
            f"; moving average {100 * result['average_accuracy']:.2f} % "
            f"(best {100 * result['best_average_accuracy']:.2f} %)"
        )
    lines = [line]
    if result["corrupt_samples"]:
        lines.append(f"{result['corrupt_samples']} samples could not be read and were left out; corrupt.txt lists them")
    if config.data.generated:
        return [*lines, "the data was generated, so this accuracy has no meaning"]
    best, last, source = config.published.test_accuracy, config.published.last_test_accuracy, config.published.source
    values = [f"{best:.2f} %"] if best is not None else []
    values += [f"last epoch {last:.2f} %"] if last is not None else []
    return [*lines, f"published: {', '.join([*values, source])}"] if values or source else lines
