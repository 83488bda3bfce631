"""A trained network once more: :func:`evaluate_run`, ``sewsnn eval``."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sewsnn import layers
from sewsnn.analysis.per_step import PerStep, evaluate_per_step, latency
from sewsnn.data import DataSource
from sewsnn.data.source import identity, other_data
from sewsnn.errors import CheckpointError, DataError, UserError, one_line, short
from sewsnn.files import exists, is_folder, write_text
from sewsnn.models import load_checkpoint
from sewsnn.models.weights import read_weights
from sewsnn.progress import Progress, tell, watched
from sewsnn.train import build, checkpoint
from sewsnn.train.config import Config, differences, from_dict, load_config
from sewsnn.train.prefetch import Prefetch
from sewsnn.train.step import autocast

_NO_MATTER = ("backend", "weights", "fused", "pack_spikes")  # for what the network computes
_CALLS = 10  # that a latency is the median of


def open_run(
    source: Path, overrides: dict[str, str], weights: str | None = None, average: bool = False
) -> tuple[Config, nn.Module, DataSource]:
    """The configuration, the trained network and the data of a run.

    Args:
        source: the folder of a run, or a configuration.
        overrides: keys of the configuration, as on the command line.
        weights: a checkpoint of any dialect; None: that of the run.
        average: the moving average of the weights rather than the last ones.

    Raises:
        UserError: one of them is not as it must be.
    """
    is_run = is_folder(source)
    if not is_run and not exists(source):
        raise UserError(f"{source}: there is no such folder or file")
    if is_run and not exists(source / "config.yaml"):
        raise UserError(f"{source} is not the folder of a run: it has no config.yaml")
    if not is_run and weights is None:
        raise UserError("--weights must name a checkpoint, or the first argument a run's folder")
    config = load_config(source / "config.yaml" if is_run else source, overrides)
    if any(key in ("weights", "model.weights") for key in overrides):
        raise UserError("model.weights is what a training begins with: what is evaluated is named by --weights")
    data = build.build_data(config)
    model = build.build_model(config, data)
    path = Path(weights) if weights else source / checkpoint.NAME
    _note_differences(path, config if weights else None, overrides, data)
    if average:
        _load_average(model, path)
    else:
        for note in load_checkpoint(model, path).notes:
            tell(f"sewsnn: {note}")
    device = build.choose_device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return config, model.to(device).eval(), data


def _note_differences(path: Path, config: Config | None, overrides: dict[str, str], data: DataSource) -> None:
    """Says what is other than when the weights were trained: names of classes, and settings of the network (unless the
    configuration is the run's own) but for those that were asked for."""
    weights = read_weights(path)
    trained_on = {"classes": (weights.data or {}).get("classes")}
    if other_data(trained_on, identity(data)):
        tell(f"sewsnn: {path} was trained on classes of other names: its labels may mean others here")
    if config is None or weights.config is None:
        return
    try:
        before, now = from_dict(weights.config, f"{path}: config").to_dict(), config.to_dict()
    except UserError:  # of another program
        return
    for key in differences(before, now):
        asked = any(f".{word}." in f".{key}." for word in overrides)
        if key.startswith("model.") and not asked and key.split(".")[-1] not in _NO_MATTER:
            old, new = (_value_of(settings, key) for settings in (before, now))
            tell(f"sewsnn: {path} was trained with {key} {short(old)}, and is evaluated with {short(new)}")


def _value_of(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name] if isinstance(settings, dict) else None
    return settings


def _load_average(model: nn.Module, path: Path) -> None:
    saved = checkpoint.load(path)["average"]
    if saved is None:
        raise CheckpointError(f"{path} has no moving average: train.ema was 0")
    try:
        load_checkpoint(model, {"average": saved}, container="average")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def evaluate_run(config: Config, model: nn.Module, data: DataSource, steps: list[int] | None = None) -> dict[str, Any]:
    """Accuracy and firing rates after t time-steps, and the latency of a batch.

    Args:
        config: ``train.test_amp`` and ``train.channels_last`` hold here, too.
        steps: the t to report; None: 1, 2, 4 ... and T.

    Returns:
        ``samples``, ``left_out`` (damaged files and why), ``T`` (the list of t), and for each of them ``accuracy``,
        ``accuracy5``, ``loss``, ``latency`` (median seconds for a batch of ``batch`` samples, batch norm folded into
        the convolutions), ``images_per_second``, ``firing_rate`` (the mean over layers) and ``firing_rates`` of each
        layer.

    Raises:
        UserError: a t is more than T.
    """
    device = next(model.parameters()).device
    settings, T = config.train, config.model.T
    steps = steps or sorted({T, *(2**k for k in range(T.bit_length()) if 2**k <= T)})
    if wrong := [t for t in steps if not 1 <= t <= T]:
        raise UserError(f"--steps must be 1 to T = {T}, got {wrong[0]}")
    with autocast(device, settings.test_amp):
        batches = Prefetch(data.test_batches(), device, data.to_float, settings.channels_last)
        x, _ = next(iter(Prefetch(data.test_batches(), device, data.to_float, settings.channels_last)), (None, None))
        if x is None:
            raise DataError(
                f"no test sample can be read: {one_line(next(iter(data.corrupt.values()), 'there are none'))}"
            )
        found = evaluate_per_step(model, watched(batches, "evaluation", data.test_steps))
        folded = layers.fuse(model)
        samples, latencies = x.shape[x.dim() - 4], []
        with Progress("latency", len(steps)) as bar:
            for t in steps:
                latencies.append(latency(folded, x, t, _CALLS))
                bar.add(samples * _CALLS)
    return {
        "samples": found.samples,
        "left_out": dict(data.corrupt),
        "T": steps,
        "accuracy": [found.accuracy[t - 1] for t in steps],
        "accuracy5": [found.accuracy5[t - 1] for t in steps],
        "loss": [found.loss[t - 1] for t in steps],
        "firing_rate": [_mean(found, t) for t in steps],
        "batch": samples,
        "latency": latencies,
        "images_per_second": [samples / seconds for seconds in latencies],
        "firing_rates": {name: [rates[t - 1] for t in steps] for name, rates in found.firing_rates.items()},
    }


def _mean(found: PerStep, t: int) -> float:
    """Over layers."""
    return sum(rates[t - 1] for rates in found.firing_rates.values()) / max(len(found.firing_rates), 1)


def table(result: dict[str, Any]) -> str:
    """A result in lines."""
    lines = [f"left out, since it is damaged: {one_line(text)}" for text in result["left_out"].values()]
    lines += [f"{result['samples']} test samples; latency of a batch of {result['batch']}, batch norm folded"]
    lines.append(f"{'T':>4} {'top-1':>8} {'top-5':>8} {'loss':>8} {'rate':>7} {'latency':>11} {'images/s':>9}")
    names = ("T", "accuracy", "accuracy5", "loss", "firing_rate", "latency", "images_per_second")
    for t, top1, top5, loss, rate, seconds, speed in zip(*(result[name] for name in names), strict=True):
        lines.append(
            f"{t:>4} {100 * top1:>6.2f} % {100 * top5:>6.2f} % {loss:>8.4f} {rate:>7.4f} {1000 * seconds:>8.2f} ms "
            f"{speed:>9.0f}"
        )
    lines.append("firing rate per layer (spikes per neuron and time-step), at each T above")
    width = max(len(name) for name in result["firing_rates"])
    for name, rates in result["firing_rates"].items():
        lines.append(f"  {name:<{width}} " + " ".join(f"{rate:.4f}" for rate in rates))
    return "\n".join(lines)


def write_evaluation(result: dict[str, Any], path: Path) -> None:
    """The result as JSON, with what it was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    about = {"device": device, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    write_text(path, json.dumps(result | about, indent=2) + "\n")
