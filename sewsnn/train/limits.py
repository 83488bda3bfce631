"""Checks that the values of a configuration are valid: :func:`check`."""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from typing import Any

from sewsnn.errors import ConfigError, short, unknown
from sewsnn.models import list_models
from sewsnn.models.sew_resnet import FREE_SIZE
from sewsnn.train.schedule import factor
from sewsnn.train.schema import (
    AT_LEAST,
    AT_MOST,
    LARGEST,
    MOST_BLOCKS,
    MOST_STAGES,
    MOST_WIDTH,
    Config,
)

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_PATHS = ("output", "data.root", "model.weights")
_MOST_ENTRIES = 64  # of a list of the section analysis
_LONGEST_NAME, _LONGEST_PATH = (
    255,
    4000,
)  # bytes; the limits of Linux are 255 and 4,095, and the names of files in the folder need some


def check_device(name: str) -> None:
    """Raises ConfigError unless ``name`` is a type of device on which networks can be trained."""
    if not _DEVICE.fullmatch(name):
        raise ConfigError(f"train.device must be auto, cpu, cuda or cuda:N (GPU number N, from 0), got {short(name)}")


def check(config: Config) -> None:
    """Raises ConfigError if a value has the right type but is out of range or contradicts another key; the message
    names the key."""
    values = dict(_values(config))
    _check_numbers(values)
    _check_texts(values)
    check_device(config.train.device)
    _check_model(config)
    if config.data.T_train > config.model.T:
        raise ConfigError(f"data.T_train must be at most model.T ({config.model.T}), got {config.data.T_train}")
    test_size = config.data.test_size or config.data.image_size
    if test_size > config.data.resize:
        raise ConfigError(
            f"data.resize must be at least the size of the test images ({test_size}), got {config.data.resize}"
        )
    if config.data.split_by == "duration" and not config.data.frame_us:
        raise ConfigError("data.split_by: duration needs data.frame_us, the microseconds per frame")
    if config.schedule.warmup_epochs >= config.train.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs must be less than train.epochs ({config.train.epochs}), got "
            f"{config.schedule.warmup_epochs}"
        )
    if config.train.cuda_graph and config.train.compile != "off":
        raise ConfigError(
            f"train.cuda_graph: true and train.compile: {config.train.compile} exclude each other; set one of them to "
            "false or off"
        )
    if config.train.monitor and (config.train.cuda_graph or config.train.compile != "off"):
        other = "cuda_graph: true" if config.train.cuda_graph else f"compile: {config.train.compile}"
        raise ConfigError(
            f"train.monitor: true and train.{other} exclude each other: the monitor needs the call of every block"
        )
    _check_lr(config)
    _check_analysis(config)


def _values(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key and its value; keys of a section that is null are left out."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _check_numbers(values: dict[str, Any]) -> None:
    for key, least in AT_LEAST.items():
        if not values[key] >= least:
            raise ConfigError(f"{key} must be at least {least}, got {short(values[key])}")
        if values[key] == math.inf:
            raise ConfigError(f"{key} must be finite, got {values[key]}")
    for key, most in AT_MOST.items():
        if values[key] > most:
            raise ConfigError(f"{key} must be at most {most}, got {short(values[key])}")
    for key, value in values.items():
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise ConfigError(f"{key} must be a finite number of at most {LARGEST:g}, got {short(value)}")


def _check_texts(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{key} must be text without a NUL character, got {short(value)}")
    name = values["name"]
    if not name.strip("./ ") or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(f"name must be printable text of 1 to {_LONGEST_NAME} bytes, got {short(name)}")
    for key in _PATHS:
        if values[key] is not None:
            _check_path(key, values[key])


def _check_path(key: str, path: str) -> None:
    if not path:
        raise ConfigError(f"{key} must be a path or null, got an empty value")
    try:
        encoded = path.encode() if key == "output" else os.fsencode(path)  # TensorBoard writes only to UTF-8 names
    except UnicodeEncodeError:
        kind = "UTF-8" if key == "output" else "the file system's encoding"
        raise ConfigError(f"{key} must be a path in {kind}, got {short(path)}") from None
    longest = max(map(len, encoded.split(os.fsencode(os.sep))))
    if longest > _LONGEST_NAME or len(encoded) > _LONGEST_PATH:
        raise ConfigError(
            f"{key} must be a path of at most {_LONGEST_PATH:,} bytes with names of at most {_LONGEST_NAME}, got "
            f"{short(path)} ({len(encoded):,} bytes, {longest:,} in its longest name)"
        )


def _check_model(config: Config) -> None:
    model = config.model
    if model.name not in list_models():
        raise ConfigError(f"model.name: {unknown('model', model.name, list_models())}")
    for key, entries, most in (("blocks", model.blocks, MOST_BLOCKS), ("widths", model.widths, MOST_WIDTH)):
        if len(entries) > MOST_STAGES:
            raise ConfigError(f"model.{key} must have at most {MOST_STAGES} entries, got {len(entries)}")
        for i, value in enumerate(entries):
            if not 1 <= value <= most:
                raise ConfigError(f"model.{key}[{i}] must be from 1 to {most}, got {short(value)}")
    given = bool(model.blocks or model.widths)
    if model.name in FREE_SIZE and not given:
        raise ConfigError(f"model.blocks and model.widths must be set for model.name: {model.name}")
    if given and model.name not in FREE_SIZE and not model.name.endswith("_net"):
        raise ConfigError(
            f"model.blocks and model.widths can be set for {', '.join(FREE_SIZE)} and the networks *_net only; the "
            f"name {model.name} stands for a size"
        )
    if len(model.blocks) != len(model.widths):
        raise ConfigError(
            f"model.blocks and model.widths must have one entry per stage, got {model.blocks} and {model.widths}"
        )
    if model.stem_kernel is not None and not 1 <= model.stem_kernel <= 255:
        raise ConfigError(f"model.stem_kernel must be from 1 to 255, got {short(model.stem_kernel)}")


def _check_lr(config: Config) -> None:
    """Checks that the largest learning rate of the schedule, and its product with AdamW's weight decay, fit into
    float32."""
    optimizer, schedule, epochs = config.optimizer, config.schedule, config.train.epochs
    factors = {"schedule.warmup_start": schedule.warmup_start if schedule.warmup_epochs else 0.0}
    if schedule.name == "cosine":
        factors["schedule.final"] = schedule.final
    if schedule.name == "step":
        try:
            factors["schedule.gamma"] = factor(schedule, epochs, epochs - 1)
        except OverflowError:
            factors["schedule.gamma"] = math.inf
    for key, most in factors.items():
        if not optimizer.lr * most <= LARGEST:
            raise ConfigError(
                f"{key} multiplies the learning rate (optimizer.lr {optimizer.lr:g}) by {most:.3g}; the result must "
                f"be at most {LARGEST:g}"
            )
    largest = optimizer.lr * max(1.0, *factors.values())
    if optimizer.name == "adamw" and not largest * optimizer.weight_decay <= LARGEST:
        raise ConfigError(
            f"optimizer.weight_decay ({optimizer.weight_decay:g}) times the learning rate ({largest:g}) must be at "
            f"most {LARGEST:g}"
        )


def _check_analysis(config: Config) -> None:
    analysis = config.analysis
    for name, rate in dataclasses.asdict(analysis.learning_rates).items():
        if not 0 <= rate <= LARGEST:
            raise ConfigError(f"analysis.learning_rates.{name} must be a number of at least 0, got {short(rate)}")
    for key, values, least in (("sweep", analysis.sweep, 0), ("depths", analysis.depths, 1)):
        if not values or len(values) > _MOST_ENTRIES:
            raise ConfigError(f"analysis.{key} must have 1 to {_MOST_ENTRIES} entries, got {len(values)}")
        if len(set(values)) < len(values):
            raise ConfigError(f"analysis.{key} must not repeat an entry, got {short(values)}")
        for i, value in enumerate(values):
            if not (least <= value <= LARGEST and value):
                raise ConfigError(f"analysis.{key}[{i}] must be a number above 0, got {short(value)}")
    if not 1 <= len(analysis.settings) <= _MOST_ENTRIES:
        raise ConfigError(f"analysis.settings must have 1 to {_MOST_ENTRIES} entries, got {len(analysis.settings)}")
    for i, pair in enumerate(analysis.settings):
        if len(pair) != 2 or not all(0 < value <= LARGEST for value in pair):
            raise ConfigError(f"analysis.settings[{i}] must be [V_th, alpha], two numbers above 0, got {short(pair)}")
