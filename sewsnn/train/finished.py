"""Evaluates a trained network: :func:`evaluate_run`, ``sewsnn eval``."""

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

_NO_MATTER = ("backend", "weights", "fused", "pack_spikes")  # keys that do not change the function of the network
_CALLS = 10  # a latency is the median of this many calls


def open_run(
    source: Path, overrides: dict[str, str], weights: str | None = None, average: bool = False
) -> tuple[Config, nn.Module, DataSource]:
    """Opens the configuration, the trained network and the data of a run.

    Args:
        source: the folder of a run, or a configuration file.
        overrides: configuration keys and values, as on the command line.
        weights: a checkpoint in any dialect; None (default): the last checkpoint of the run. Required with a
            configuration file.
        average: load the moving average of the weights instead of the last weights (default False).

    Returns:
        ``(config, model, data)``; the model is on its device and in evaluation mode.

    Raises:
        UserError: a file is missing or invalid, or a setting is wrong; the message names it.
    """
    is_run = is_folder(source)
    if not is_run and not exists(source):
        raise UserError(f"{source} does not exist; expected the folder of a run or a configuration file")
    if is_run and not exists(source / "config.yaml"):
        raise UserError(f"{source} is not the folder of a run: it has no config.yaml")
    if not is_run and weights is None:
        raise UserError("--weights must name a checkpoint, unless RUN is the folder of a run")
    config = load_config(source / "config.yaml" if is_run else source, overrides)
    if any(key in ("weights", "model.weights") for key in overrides):
        raise UserError(
            "model.weights sets the initial weights of training; use --weights for the checkpoint to evaluate"
        )
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
    """Prints what differs from the training of the weights: the names of the classes, and settings of the network.
    Settings that were given as overrides, and those of the run's own configuration, are not reported."""
    weights = read_weights(path)
    trained_on = {"classes": (weights.data or {}).get("classes")}
    if other_data(trained_on, identity(data)):
        tell(f"sewsnn: {path} was trained on classes with other names, so its labels may not match this data set")
    if config is None or weights.config is None:
        return
    try:
        before, now = from_dict(weights.config, f"{path}: config").to_dict(), config.to_dict()
    except UserError:  # the configuration of another program
        return
    for key in differences(before, now):
        asked = any(f".{word}." in f".{key}." for word in overrides)
        if key.startswith("model.") and not asked and key.split(".")[-1] not in _NO_MATTER:
            old, new = (_value_of(settings, key) for settings in (before, now))
            tell(f"sewsnn: {path} was trained with {key} {short(old)} and is evaluated with {short(new)}")


def _value_of(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name] if isinstance(settings, dict) else None
    return settings


def _load_average(model: nn.Module, path: Path) -> None:
    saved = checkpoint.load(path)["average"]
    if saved is None:
        raise CheckpointError(f"{path} has no moving average of the weights: train.ema was 0")
    try:
        load_checkpoint(model, {"average": saved}, container="average")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def evaluate_run(config: Config, model: nn.Module, data: DataSource, steps: list[int] | None = None) -> dict[str, Any]:
    """Measures accuracy and firing rates after t time-steps, and the latency of a batch.

    Args:
        config: the configuration; ``train.test_amp`` and ``train.channels_last`` apply.
        model: the network.
        data: the data set.
        steps: the values of t to report, each 1 to T; None (default): 1, 2, 4, ... and T.

    Returns:
        A dictionary:

        - ``samples``: number of test samples; ``left_out``: damaged files, and why.
        - ``T``: the list of t. The other lists have one entry for each t.
        - ``accuracy``, ``accuracy5`` (in [0, 1]) and ``loss``.
        - ``batch``: samples per batch; ``latency``: median seconds for such a batch, with batch norm folded into the
          convolutions; ``images_per_second``.
        - ``firing_rate``: spikes per neuron and time-step, mean over the layers; ``firing_rates``: for each layer.

    Raises:
        UserError: a value of ``steps`` is not 1 to T.
        DataError: no test sample can be read.
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
                f"cannot read any test sample: {one_line(next(iter(data.corrupt.values()), 'there are no samples'))}"
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
    """Returns the mean firing rate over the layers."""
    return sum(rates[t - 1] for rates in found.firing_rates.values()) / max(len(found.firing_rates), 1)


def table(result: dict[str, Any]) -> str:
    """Formats a result of :func:`evaluate_run` as lines of text."""
    lines = [f"left out as damaged: {one_line(text)}" for text in result["left_out"].values()]
    lines += [f"{result['samples']} test samples; latency of a batch of {result['batch']} with batch norm folded"]
    lines.append(f"{'T':>4} {'top-1':>8} {'top-5':>8} {'loss':>8} {'rate':>7} {'latency':>11} {'images/s':>9}")
    names = ("T", "accuracy", "accuracy5", "loss", "firing_rate", "latency", "images_per_second")
    for t, top1, top5, loss, rate, seconds, speed in zip(*(result[name] for name in names), strict=True):
        lines.append(
            f"{t:>4} {100 * top1:>6.2f} % {100 * top5:>6.2f} % {loss:>8.4f} {rate:>7.4f} {1000 * seconds:>8.2f} ms "
            f"{speed:>9.0f}"
        )
    lines.append("firing rate of each layer (spikes per neuron and time-step) for each T above")
    width = max(len(name) for name in result["firing_rates"])
    for name, rates in result["firing_rates"].items():
        lines.append(f"  {name:<{width}} " + " ".join(f"{rate:.4f}" for rate in rates))
    return "\n".join(lines)


def write_evaluation(result: dict[str, Any], path: Path) -> None:
    """Writes the result as JSON, with the device, the number of CPU threads and the version of torch."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    about = {"device": device, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    write_text(path, json.dumps(result | about, indent=2) + "\n")
