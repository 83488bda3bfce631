"""Builds the objects of a run from its configuration."""

import dataclasses
import os
from collections.abc import Callable

import torch
from torch import nn

from sewsnn import data, models, neuron, surrogate
from sewsnn.errors import ConfigError, by_nearness, one_line, short
from sewsnn.ops.load import resolve_backend
from sewsnn.train.limits import check_device
from sewsnn.train.schema import Config, NeuronConfig


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Returns the device of this process. A chosen GPU becomes torch's current device, so that generators and pinned
    memory belong to it.

    Args:
        name: ``auto`` (CUDA if available, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
        local_rank: index of the GPU on this machine that ``cuda`` means; None (default): the first.

    Raises:
        ConfigError: the device does not exist, or networks cannot be trained on devices of this type.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error) or "not available"
        raise ConfigError(f"train.device: cannot use {name!r}: {reason}") from None
    return device


def set_up_torch(config: Config) -> None:
    """Applies the settings that hold for the whole process: threads, determinism, cuDNN autotuning."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.train.deterministic:
        make_deterministic()
    else:
        torch.backends.cudnn.benchmark = True


def make_deterministic() -> None:
    """Makes results reproducible bit for bit, also on CUDA. torch then raises an error for operations without a
    deterministic implementation."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at start-up
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def neuron_factory(config: NeuronConfig, key: str = "model.neuron") -> Callable[[], nn.Module]:
    """Returns a function that creates one neuron layer. Invalid settings raise here and not at the first call.

    Args:
        config: the settings of the neuron.
        key: the configuration key, for messages (default ``model.neuron``).

    Raises:
        ConfigError: a setting is invalid; the message names it.
    """
    known = surrogate.__all__
    if config.surrogate not in known or config.surrogate == "Surrogate":
        names = ", ".join(by_nearness(config.surrogate, set(known) - {"Surrogate"}))
        raise ConfigError(f"{key}.surrogate must be one of {names}, got {short(config.surrogate)}")

    parameters = () if config.surrogate_parameter is None else (config.surrogate_parameter,)

    def make() -> nn.Module:
        shared = {
            "v_threshold": config.v_threshold,
            "v_reset": config.v_reset,
            "surrogate_function": getattr(surrogate, config.surrogate)(*parameters),
            "detach_reset": config.detach_reset,
            "backend": config.backend,
            "store_v": False,
        }
        if config.type == "IF":
            return neuron.IFNode(**shared)
        if config.type == "LIF":
            return neuron.LIFNode(config.tau, config.decay_input, **shared)
        return neuron.ParametricLIFNode(config.tau, config.decay_input, tau_grad=config.tau_grad, **shared)

    try:
        make()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from None
    return make


def backend_of(config: Config, device: torch.device) -> str:
    """Returns the backend that the neurons will use. Raises an error before training if it is not available."""
    settings = config.model.neuron
    node = neuron_factory(settings)()
    return resolve_backend(settings.backend, device, node.surrogate_function)


def build_data(config: Config, rank: int = 0, world: int = 1) -> data.DataSource:
    """Opens the data set of the configuration, or this process's share of it.

    Args:
        config: the configuration.
        rank: index of this process (default 0).
        world: number of processes (default 1).

    Raises:
        ConfigError: a setting does not fit the data set.
        DataError: a file is missing or damaged.
    """
    settings = dataclasses.asdict(config.data)
    name, T_train = settings.pop("name"), settings.pop("T_train")
    try:
        source = data.create_data(name, seed=config.seed, T=config.model.T, rank=rank, world=world, **settings)
    except ValueError as error:
        raise ConfigError(f"data.name: {error}") from None
    if T_train and not source.sequences:
        raise ConfigError(
            f"data.T_train: {name} has still images, which have no time-steps to delete; set data.T_train to 0"
        )
    return source


def build_model(config: Config, source: data.DataSource) -> nn.Module:
    """Creates the network of the configuration for the classes and channels of ``source``. Raises ConfigError if the
    settings are invalid."""
    settings = dataclasses.asdict(config.model)
    del settings["weights"]
    for key in ("blocks", "widths"):  # the name of the model defines its size
        if not settings[key]:
            del settings[key]
    for key in ("stem", "stem_kernel", "last_neuron"):  # null: keep the default of the model
        if settings[key] is None:
            del settings[key]
    settings["neuron"] = neuron_factory(config.model.neuron)
    if config.model.last_neuron:
        settings["last_neuron"] = neuron_factory(config.model.last_neuron, "model.last_neuron")
    try:
        return models.create_model(num_classes=source.num_classes, in_channels=source.in_channels, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: {error}") from None


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Creates the optimizer of the configuration for the parameters of ``model``. Raises ConfigError if the settings
    are invalid."""
    settings = config.optimizer
    parameters = list(model.parameters())
    groups = [{"params": parameters}]
    if not settings.decay_norms:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
    fused = True if parameters[0].is_cuda or config.train.cuda_graph else None
    if settings.name == "adamw":
        optimizer = torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay, fused=fused)
    else:
        try:
            optimizer = torch.optim.SGD(
                groups,
                settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                nesterov=settings.nesterov,
                fused=fused,
            )
        except ValueError as error:
            raise ConfigError(f"optimizer: {error}") from None
    for group in optimizer.param_groups:
        group["initial_lr"] = settings.lr
        if config.train.cuda_graph:  # a graph reads the learning rate from memory; the fused kernels take float32
            group["lr"] = torch.tensor(settings.lr, dtype=torch.float32, device=parameters[0].device)
    if fused and settings.name == "sgd" and settings.momentum:
        # If the first step is skipped because of infinite gradients, torch's fused SGD leaves memory without values in
        # the momentum. From zeros, the first step gives the same result.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
