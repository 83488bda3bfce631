"""Reading a configuration: dataclass defaults < YAML file < command line.

A key is a path through the dataclasses of :mod:`sewsnn.train.schema` (``optimizer.lr``); on the command line the last
part alone is enough where only one key ends so (``--lr 0.05``).
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

_REQUIRED = ("data.name", "model.name")  # what a run is of; there is no usual one


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file and puts ``overrides`` (key -> YAML text, as from the command line) over it.

    An override may be a whole section: ``{"model.last_neuron": "null"}``, or ``{"model.neuron": "{type: LIF}"}``, which
    sets the keys it has. Where they make another experiment of it, what was published for the file's is no aim any
    more.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named) or stands twice, a value has the
            wrong type or cannot work, or neither the file nor an override names the data set and the model.
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
            f"{path} does not say {' and '.join(missing)}: a configuration must name its data set "
            f"({', '.join(list_data())}) and its model (sewsnn models lists them), or the command line must"
        )
    return config


def _is_of_the_experiment(key: str) -> bool:
    """Whether a result would be another one's with another value of the key."""
    section = key.partition(".")[0]
    chosen = section in ("data", "model", "optimizer", "schedule", "loss")
    of_training = key in ("train.epochs", "train.accumulate", "train.ema", "train.sync_bn")
    return (chosen or of_training) and key not in FREE | {"data.generated", "data.loader", "data.on_corrupt"}


def from_dict(content: Any, where: str = "config") -> Config:
    """A configuration from nested dictionaries; what is missing keeps its default."""
    return fill(Config(), content, "", where)


# ---- the command line


def _resolve(config: Config, key: str) -> str:
    """The whole key, or the section, that a word of the command line means."""
    known = keys() + sections()
    if key in known:
        return key
    endings = [k for k in known if k.endswith(f".{key}") and _is_there(config, k)]
    if len(endings) > 1:
        raise ConfigError(f"--{key} could be any of {', '.join(endings)}: write the whole key")
    if not endings:
        raise unknown_key(key, "command line", known + [k.split(".")[-1] for k in known])
    return endings[0]


def _is_there(config: Config, key: str) -> bool:
    """Whether no section on the way to the key is null: one that is must be asked for by its name."""
    target = config
    for section in key.split(".")[:-1]:
        target = getattr(target, section)
        if target is None:
            return False
    return True


def _note(words: dict[str, str], full: str, key: str) -> None:
    """Notes which word stands for a key; two for the same one, or for a section and a part of it, are an error."""
    for other, word in words.items():
        if full == other or full.startswith(f"{other}.") or other.startswith(f"{full}."):
            raise ConfigError(f"command line: --{word} and --{key} both set {max(full, other, key=len)}: give one")
    words[full] = key


def _override(config: Config, full: str, text: str) -> set[str]:
    """Sets a key, or what a mapping says of a section; returns the keys that were set."""
    *path, name = full.split(".")
    target = config
    for section in path:
        if getattr(target, section) is None:
            setattr(target, section, section_of(typing.get_type_hints(type(target))[section])())
        target = getattr(target, section)
    hint = typing.get_type_hints(type(target))[name]
    section = section_of(hint)
    if not text.strip():
        raise ConfigError(f"command line: --{full} is given nothing (null says: none)")
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
    """What a word means: for a key that is text itself, in which YAML would find comments, dates and numbers."""
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
