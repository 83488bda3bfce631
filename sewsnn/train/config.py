"""Reads a configuration. The command line overrides the YAML file, and the file overrides the defaults.

A key is a path through the dataclasses of :mod:`sewsnn.train.schema`, such as ``optimizer.lr``. On the command line its
last part is enough if no other key ends in it (``--lr 0.05``).
"""

import typing
from pathlib import Path
from typing import Any

from sewsnn.data import list_data
from sewsnn.errors import ConfigError
from sewsnn.train.limits import check
from sewsnn.train.schema import FREE, Config, PublishedConfig
from sewsnn.train.typed import (
    convert,
    differences,
    fill,
    is_optional,
    keys,
    said,
    section_of,
    sections,
    unknown_key,
)
from sewsnn.train.yaml_text import parse_yaml, read_yaml

__all__ = ["Config", "check", "differences", "from_dict", "keys", "load_config"]

_REQUIRED = ("data.name", "model.name")  # a run has no default for these


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file and applies overrides.

    Args:
        path: the YAML file.
        overrides: maps keys to YAML text, as on the command line: ``{"optimizer.lr": "0.05"}``, or ``{"lr": "0.05"}``
            if no other key ends in ``lr``. A whole section is possible: ``{"model.last_neuron": "null"}``, or
            ``{"model.neuron": "{type: LIF}"}``, which sets the keys it contains and keeps the others. None (default):
            no overrides.

    Returns:
        A :class:`~sewsnn.train.schema.Config`. If the overrides change the experiment, its ``published`` section is
        empty, because the published result belongs to the file's experiment.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest) or given twice, a value
            has the wrong type or is out of range, or neither the file nor an override names the data set and the model.
    """
    content = read_yaml(path)
    content = {} if content is None else content
    config = from_dict(content, str(path))
    before, found = config.to_dict(), set(said(content))
    words: dict[str, str] = {}
    for key in overrides or {}:
        _note(words, _resolve(config, key), key)
    for full, key in words.items():
        found |= _override(config, full, overrides[key])
    if any(_is_of_the_experiment(key) for key in differences(before, config.to_dict())):
        config.published = PublishedConfig()
    check(config)
    if missing := [key for key in _REQUIRED if key not in found]:
        raise ConfigError(
            f"{path} does not set {' and '.join(missing)}: the configuration or the command line must name the data "
            f"set ({', '.join(list_data())}) and the model (sewsnn models lists them)"
        )
    return config


def _is_of_the_experiment(key: str) -> bool:
    """Returns whether another value of the key makes another experiment, so that the published result no longer
    applies."""
    section = key.partition(".")[0]
    chosen = section in ("data", "model", "optimizer", "schedule", "loss")
    of_training = key in ("train.epochs", "train.accumulate", "train.ema", "train.sync_bn")
    return (chosen or of_training) and key not in FREE | {"data.generated", "data.loader", "data.on_corrupt"}


def from_dict(content: Any, where: str = "config") -> Config:
    """Makes a configuration from nested dictionaries. Missing keys keep their defaults.

    Args:
        content: the dictionaries.
        where: the name of their source, for messages (default ``config``).

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    return fill(Config(), content, "", where)


# ---- the command line


def _resolve(config: Config, key: str) -> str:
    """Returns the full key that a word of the command line means."""
    known = keys() + sections()
    if key in known:
        return key
    endings = [k for k in known if k.endswith(f".{key}") and _is_there(config, k)]
    if len(endings) > 1:
        raise ConfigError(f"--{key} is ambiguous: it matches {', '.join(endings)}; write the whole key")
    if not endings:
        raise unknown_key(key, "command line", known + [k.split(".")[-1] for k in known])
    return endings[0]


def _is_there(config: Config, key: str) -> bool:
    """Returns whether no section on the path to the key is null. A key in a null section needs its full name."""
    target = config
    for section in key.split(".")[:-1]:
        target = getattr(target, section)
        if target is None:
            return False
    return True


def _note(words: dict[str, str], full: str, key: str) -> None:
    """Records which word sets a key. Raises ConfigError if two words set the same key, or a section and a key in it."""
    for other, word in words.items():
        if full == other or full.startswith(f"{other}.") or other.startswith(f"{full}."):
            raise ConfigError(f"command line: --{word} and --{key} both set {max(full, other, key=len)}; give only one")
    words[full] = key


def _override(config: Config, full: str, text: str) -> set[str]:
    """Sets a key, or the keys of a section that a mapping contains. Returns the keys that were set."""
    *path, name = full.split(".")
    target = config
    for section in path:
        if getattr(target, section) is None:
            setattr(target, section, section_of(typing.get_type_hints(type(target))[section])())
        target = getattr(target, section)
    hint = typing.get_type_hints(type(target))[name]
    section = section_of(hint)
    if not text.strip():
        raise ConfigError(f"command line: --{full} has an empty value; write null for no value")
    if section is None:
        setattr(target, name, convert(_value(text, hint), hint, full, "command line"))
        return {full}
    content = parse_yaml(text, f"command line: --{full}")
    if content is None and is_optional(hint):
        setattr(target, name, None)
        return {full}
    setattr(target, name, fill(getattr(target, name) or section(), content, f"{full}.", "command line"))
    return set(said(content, f"{full}."))


def _value(text: str, hint: Any) -> Any:
    """Converts a word to a value. A key of type text takes the word as it is, because YAML would find comments, dates
    and numbers in it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if hint is str or (str in typing.get_args(hint) and is_optional(hint)):
        if is_optional(hint) and text in ("null", "~"):
            return None
        if not quoted:
            return text
    try:
        return parse_yaml(text, "command line")
    except ConfigError:
        return text
