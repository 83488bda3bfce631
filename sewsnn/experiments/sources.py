"""The networks that an analysis measures: fresh ones, those of runs, or weights from a file (:func:`open_networks`)."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from sewsnn.analysis.calibration import calibrate
from sewsnn.data import DataSource
from sewsnn.errors import DataError, UserError, one_line
from sewsnn.experiments.forms import data_in_words
from sewsnn.experiments.report import code, printable
from sewsnn.files import is_folder
from sewsnn.train import build
from sewsnn.train.checkpoint import NAME
from sewsnn.train.config import Config, load_config
from sewsnn.train.finished import open_run
from sewsnn.train.nonfinite import bad_entries
from sewsnn.train.prefetch import Prefetch

_CALIBRATED = 8  # training batches that give the statistics of a network with random weights


class Opened(NamedTuple):
    """A network with its data.

    Attributes:
        name: what the report calls it; printable, and different for each network of a report.
        config: its configuration.
        model: the network, on its device.
        data: the data set.
        trained: the weights come from a run or a file.
    """

    name: str
    config: Config
    model: nn.Module
    data: DataSource
    trained: bool


def open_networks(sources: str | Sequence[str], overrides: Mapping[str, str], weights: str | None) -> list[Opened]:
    """Opens the networks of one or more sources.

    Args:
        sources: a configuration file, or folders of runs.
        overrides: configuration keys and values, as on the command line.
        weights: a checkpoint for a configuration file, in any dialect; None: fresh weights.

    Returns:
        One entry for each source, in order. The name of one source is that of its configuration. Several SEW networks
        that differ in nothing but their connection have its name, others that of their folder.

    Raises:
        UserError: a file is missing, damaged or does not fit; a setting is wrong; weights are infinite or NaN; a folder
            is given twice; the message names it.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    if weights == "":
        raise UserError("--weights must name a checkpoint, got an empty name")
    if len(sources) > 1 and weights is not None:
        raise UserError("--weights belongs to one configuration file; give only one SOURCE")
    _check_differ(sources)
    found = []
    for source in sources:
        path = Path(source)
        if is_folder(path) or weights is not None:
            config, model, data = open_run(path, dict(overrides), weights)
            _check_finite(model, weights or str(path / NAME))
            found.append(Opened(config.name, config, model, data, True))
        elif len(sources) > 1:
            raise UserError(f"several sources must be folders of runs, and {printable(source)} is not a folder")
        else:
            found.append(fresh(load_config(path, dict(overrides))))
    return [one._replace(name=name) for one, name in zip(found, _names(sources, found), strict=True)]


def differ_in_connection(opened: Sequence[Opened]) -> bool:
    """Returns whether all are SEW networks that have different connections and otherwise differ at most in their
    initial weights."""
    models = [one.config.to_dict()["model"] | {"weights": None, "zero_init_residual": False} for one in opened]
    connections = {model.pop("connect_f") for model in models}
    same = all(model == models[0] for model in models)
    sew = models[0]["name"].startswith("sew_") and len(connections) == len(models)
    return same and sew and len({one.config.data.name for one in opened}) == 1


def _names(sources: Sequence[str], opened: Sequence[Opened]) -> list[str]:
    if len(opened) == 1:
        return [opened[0].name]
    if differ_in_connection(opened):
        return [one.config.model.connect_f for one in opened]
    names = [os.path.basename(os.path.abspath(source)) for source in sources]
    return list(map(printable, names if len(set(names)) == len(names) else sources))


def _check_differ(sources: Sequence[str]) -> None:
    seen = {}
    for source in sources:
        path = os.path.realpath(source)
        if path in seen:
            same = f"{printable(source)} and {printable(seen[path])}"
            raise UserError(f"{same} are the same folder; give each SOURCE once")
        seen[path] = source


def _check_finite(model: nn.Module, file: str) -> None:
    if name := next(bad_entries(model), None):
        raise UserError(f"{file}: {name} holds infinite or NaN values, so there is nothing to measure")


def fresh(config: Config, data: DataSource | None = None) -> Opened:
    """Builds a network with random weights, or with the weights of ``model.weights``.

    Args:
        config: the configuration; ``seed`` gives the weights.
        data: the data set, if it is open already. Default None.

    Raises:
        UserError: a setting is wrong or a file cannot be read; the message names it.
    """
    from sewsnn.models import load_checkpoint

    device = build.choose_device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)
    data = build.build_data(config) if data is None else data
    model = build.build_model(config, data)
    if config.model.weights:
        load_checkpoint(model, config.model.weights)
        _check_finite(model, config.model.weights)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return Opened(config.name, config, model.to(device), data, bool(config.model.weights))


def test_batches(opened: Opened):
    """Yields the test batches ``(x, labels)`` that are measured, on the device of the network.

    Raises:
        DataError: there is none.
    """
    limit = opened.config.analysis.batches or None
    return _on_device(opened, islice(opened.data.test_batches(), limit), "test")


def train_batches(opened: Opened, number: int, epoch: int = 0):
    """Yields the first ``number`` training batches ``(x, labels)`` of an epoch, on the device of the network.

    Raises:
        DataError: there is none.
    """
    return _on_device(opened, islice(opened.data.train_batches(epoch), number), "training")


def test_steps(opened: Opened) -> int:
    """The number of batches of :func:`test_batches`."""
    steps = opened.data.test_steps
    return min(steps, opened.config.analysis.batches or steps)


def _on_device(opened: Opened, batches, kind: str):
    device, batch = next(opened.model.parameters()).device, None
    for batch in Prefetch(batches, device, opened.data.to_float, opened.config.train.channels_last):
        yield batch
    if batch is None:
        reason = one_line(next(iter(opened.data.corrupt.values()), "there are no samples"))
        raise DataError(f"cannot read any {kind} sample of {opened.config.data.name}: {reason}")


@contextlib.contextmanager
def as_user_error(opened: Opened) -> Iterator[None]:
    """Makes a ValueError of a network that cannot run on its data, whose images may be too small, a UserError."""
    try:
        yield
    except ValueError as error:
        config = opened.config
        raise UserError(f"{config.model.name} cannot run on the data {config.data.name}: {one_line(error)}") from None


def each(values: Iterable) -> str:
    """Returns the values that differ, separated by commas."""
    return ", ".join(dict.fromkeys(map(str, values)))


def test_data_in_words(opened: Opened) -> str:
    """Returns which test samples :func:`test_batches` yields."""
    steps, every = test_steps(opened), opened.data.test_steps
    part = f"{steps} of {every} batches of the " if steps < every else ""
    return f"{part}test set of {data_in_words(opened.config)}"


def calibrated(opened: Opened) -> Opened:
    """Gives the batch norms of a network with random weights the statistics of some training batches."""
    with as_user_error(opened):
        calibrate(opened.model, (x for x, _ in train_batches(opened, _CALIBRATED)))
    return opened


def weights_in_words(sources: str | Sequence[str], opened: Sequence[Opened], weights: str | None) -> str:
    """Returns where the weights of :func:`open_networks` come from; random ones are :func:`calibrated`."""
    if not opened[0].trained:
        return f"random; batch norm has the statistics of {_CALIBRATED} training batches"
    sources = [sources] if isinstance(sources, str) else sources
    files = sources if is_folder(sources[0]) else [opened[0].config.model.weights]
    return f"of {each(code(str(file)) for file in ([weights] if weights else files))}"
