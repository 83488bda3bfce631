"""The networks that an analysis measures: fresh ones, those of runs, or weights from a file (:func:`open_networks`)."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from sewsnn.data import DataSource
from sewsnn.errors import UserError
from sewsnn.files import is_folder
from sewsnn.train import build
from sewsnn.train.config import Config, load_config
from sewsnn.train.finished import open_run
from sewsnn.train.prefetch import Prefetch


class Opened(NamedTuple):
    """A network with its data.

    Attributes:
        name: what the report calls it.
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
        One entry for each source, in order.

    Raises:
        UserError: a file is missing, damaged or does not fit; a setting is wrong; the message names it.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    if len(sources) > 1 and weights is not None:
        raise UserError("--weights belongs to one configuration file; give only one SOURCE")
    found = []
    for source in sources:
        path = Path(source)
        if is_folder(path) or weights is not None:
            config, model, data = open_run(path, dict(overrides), weights)
            found.append(Opened(config.name, config, model, data, True))
        elif len(sources) > 1:
            raise UserError(f"several sources must be folders of runs, and {source} is not a folder")
        else:
            found.append(fresh(load_config(path, dict(overrides))))
    return found


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
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return Opened(config.name, config, model.to(device), data, bool(config.model.weights))


def test_batches(opened: Opened):
    """Yields the test batches ``(x, labels)`` that are measured, on the device of the network."""
    limit = opened.config.analysis.batches or None
    return _on_device(opened, islice(opened.data.test_batches(), limit))


def train_batches(opened: Opened, number: int, epoch: int = 0):
    """Yields the first ``number`` training batches ``(x, labels)`` of an epoch, on the device of the network."""
    return _on_device(opened, islice(opened.data.train_batches(epoch), number))


def test_steps(opened: Opened) -> int:
    """The number of batches of :func:`test_batches`."""
    steps = opened.data.test_steps
    return min(steps, opened.config.analysis.batches or steps)


def _on_device(opened: Opened, batches):
    device = next(opened.model.parameters()).device
    return Prefetch(batches, device, opened.data.to_float, opened.config.train.channels_last)
