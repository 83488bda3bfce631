"""Rebuilds the network of a checkpoint file and makes an example of its input."""

import os
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from sewsnn.data.generated import SHAPES
from sewsnn.errors import UserError
from sewsnn.models import LoadReport, load_checkpoint
from sewsnn.models.convert import cannot_build, ends_of, network_of
from sewsnn.models.network import Network
from sewsnn.models.published import task_of
from sewsnn.models.weights import Weights, read_weights, some
from sewsnn.train.build import build_model
from sewsnn.train.config import Config, check, from_dict

_SEED = 0
_EVENTS = 0.5  # mean number of events per pixel, polarity and frame of an example
_DIGITS = 8  # pixels per side of the digits data set


@dataclass(frozen=True)
class Source:
    """A network with its weights.

    Attributes:
        model: the network, in evaluation mode.
        report: the report on its weights.
        size: height and width of its input in pixels; None: unknown.
        sequences: True if its input is sequences, False if it is still images that are shown T times.
    """

    model: Network
    report: LoadReport
    size: tuple[int, int] | None
    sequences: bool

    def example(self, samples: int, size: tuple[int, int] | None = None, sequences: bool | None = None) -> Tensor:
        """Random input for the network; it is the same in every call.

        Args:
            samples: number of samples N.
            size: height and width in pixels. Default None: those of the checkpoint's data.
            sequences: make a sequence instead of images. Default None: as the checkpoint's data.

        Returns:
            Normal numbers ``[N, C, H, W]``, as in normalised images, or small event counts ``[T, N, C, H, W]``.

        Raises:
            UserError: neither ``size`` nor the checkpoint tells the size.
        """
        size = size or self.size
        if size is None:
            raise UserError("the checkpoint does not tell the size of its images: give it with --image-size")
        generator = torch.Generator().manual_seed(_SEED)
        shape = (samples, _first_conv(self.model).in_channels, *size)
        if not (self.sequences if sequences is None else sequences):
            return torch.randn(shape, generator=generator)
        return torch.poisson(torch.full((self.model.T, *shape), _EVENTS), generator)


def open_source(
    path: str | os.PathLike, name: str | None = None, T: int | None = None, container: str | None = None
) -> Source:
    """Reads weights of any dialect and builds their network.

    A checkpoint of ``sewsnn train`` describes its network, except the numbers of classes and channels, which its
    weights tell. For other files the neurons are IF, or PLIF if the weights contain its w, with the paper's settings,
    because weights do not contain these settings.

    Args:
        path: the checkpoint file.
        name: name of the network. Needed if the file does not state it; else it must be the same. Default None.
        T: number of time-steps. Default None: that of the training, or else the network's default.
        container: the key of the file to read; ``""``: the file holds only weights. Default None: the first key of a
            known name that holds a state dict.

    Returns:
        The :class:`Source`.

    Raises:
        UserError: the file or an argument is wrong; the message says which.
    """
    weights = read_weights(path, container)
    more = {} if T is None else {"T": T}
    try:
        if weights.config is None:
            model, config = network_of(weights, name, "cpu", **more), None
        else:
            config = from_dict(weights.config, f"{path}: config")
            _check(config, path)
            if name not in (None, config.model.name):
                raise UserError(f"{path} contains a {config.model.name}, not a {name}: leave out --model")
            model = _as_trained(config, weights)
            model.T = T or model.T
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise cannot_build(str(path), error) from None
    report = load_checkpoint(model, path, container=container)
    size, sequences = _input_of(config, name or weights.settings.get("name"))
    return Source(model.eval(), report, size, sequences)


def _check(config: Config, path: str | os.PathLike) -> None:
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{path}: config: {error}") from None


def _as_trained(config: Config, weights: Weights) -> nn.Module:
    ends = ends_of({key: key for key in weights.state}, weights.state)
    if not {"in_channels", "num_classes"} <= ends.keys():
        raise UserError(f"{weights.source} lacks the network's first or last layer: it has {some(weights.state)}")
    config.model.neuron.backend = "auto"  # the backend of the training may not run here
    if config.model.last_neuron:
        config.model.last_neuron.backend = "auto"
    return build_model(config, SimpleNamespace(num_classes=ends["num_classes"], in_channels=ends["in_channels"]))


def _input_of(config: Config | None, name: str | None) -> tuple[tuple[int, int] | None, bool]:
    """Height and width of the input, and whether it is sequences; from the run's data set or the paper's task."""
    if config is None:
        task = task_of(name)
        return (task.input_shape[1:], not task.still) if task else (None, False)
    data = config.data
    if data.name == "imagenet":
        return (data.test_size or data.image_size,) * 2, False
    if data.name in SHAPES:
        return SHAPES[data.name].size[1:], SHAPES[data.name].sequences
    return ((_DIGITS, _DIGITS) if data.name == "digits" else None), False


def _first_conv(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))
