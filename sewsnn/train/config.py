"""Reading a configuration: dataclass defaults < YAML file < command line.

A key is a path through the dataclasses of :mod:`sewsnn.train.schema` (``optimizer.lr``); on the command line the last
part alone is enough where only one key ends so (``--lr 0.05``).
"""

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from sewsnn.errors import ConfigError
from sewsnn.train.schema import AT_LEAST, AT_MOST, FREE, Config, PublishedConfig


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file and puts ``overrides`` (key -> YAML text, as from the command line) over it.

    Where they make another experiment of it, what was published for the file's is no aim any more.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), a value has the wrong type.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {error}") from None
    config = from_dict({} if content is None else content, str(path))
    before = config.to_dict()
    for key, text in (overrides or {}).items():
        _override(config, key, text)
    if any(_is_of_the_experiment(key) for key in differences(before, config.to_dict())):
        config.published = PublishedConfig()
    check(config)
    return config


def _is_of_the_experiment(key: str) -> bool:
    """Whether a result would be another one's with another value of the key."""
    section = key.partition(".")[0]
    chosen = section in ("data", "model", "optimizer", "schedule", "loss")
    of_training = key in ("train.epochs", "train.accumulate", "train.ema", "train.sync_bn")
    return (chosen or of_training) and key not in FREE | {"data.generated", "data.loader", "data.on_corrupt"}


def from_dict(content: Any, where: str = "config") -> Config:
    """A configuration from nested dictionaries; what is missing keeps its default."""
    return _build(Config, content, "", where)


def check(config: Config) -> None:
    """Values that are of the right type and still make no sense."""
    for key, least in AT_LEAST.items():
        value = _value(config, key)
        if not value >= least:
            raise ConfigError(f"{key} must be at least {least}, got {value}")
        if value == math.inf:
            raise ConfigError(f"{key} must be finite, got {value}")
    for key, most in AT_MOST.items():
        if _value(config, key) > most:
            raise ConfigError(f"{key} must be at most {most}, got {_value(config, key)}")
    if (config.model.name == "sew_resnet") != bool(config.model.blocks):
        raise ConfigError("model.blocks and model.widths are needed by model.name: sew_resnet, and by no other model")
    if len(config.model.blocks) != len(config.model.widths):
        raise ConfigError(
            f"model.blocks and model.widths must have one entry per stage, got {config.model.blocks} and "
            f"{config.model.widths}"
        )
    if config.data.T_train > config.model.T:
        raise ConfigError(f"data.T_train must be at most model.T, {config.model.T}, got {config.data.T_train}")
    test_size = config.data.test_size or config.data.image_size
    if test_size > config.data.resize:
        raise ConfigError(f"data.resize must be at least the test images' size, {test_size}, got {config.data.resize}")
    if config.data.split_by == "duration" and not config.data.frame_us:
        raise ConfigError("data.split_by: duration needs data.frame_us, the microseconds of a frame")
    if config.schedule.warmup_epochs >= config.train.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs must be less than train.epochs, {config.train.epochs}, got "
            f"{config.schedule.warmup_epochs}"
        )


def _value(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def keys(cls: type = Config, prefix: str = "") -> list[str]:
    """All keys, as dotted paths."""
    out = []
    for name, hint in typing.get_type_hints(cls).items():
        section = _section(hint)
        out += keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return out


def differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Keys in which two configurations, as dictionaries, differ."""
    out = []
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            out += differences(x, y, f"{prefix}{key}.")
        elif x != y:
            out.append(f"{prefix}{key}")
    return out


def _section(hint: Any) -> type | None:
    """The dataclass of a section of keys, which may be null; None for a value."""
    for choice in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(choice):
            return choice
    return None


def _unknown(key: str, where: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    if not near:  # a right leaf under a wrong section
        near = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    hint = f"; the nearest is {near[0]!r}" if near else f"; known: {', '.join(known)}"
    return ConfigError(f"{where}: unknown key {key!r}{hint}")


def _build(cls: type, content: Any, prefix: str, where: str):
    if not isinstance(content, dict):
        name = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{where}: {name} must be a mapping of keys to values, got {type(content).__name__}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        if name not in hints:
            known = keys() if prefix == "" else [k for k in keys() if k.startswith(prefix)]
            known += [prefix + n for n in hints if prefix + n not in known]
            raise _unknown(f"{prefix}{name}", where, known)
        hint = hints[name]
        section = _section(hint)
        if section and (value is not None or section is hint):
            values[name] = _build(section, {} if value is None else value, f"{prefix}{name}.", where)
        elif section:
            values[name] = None
        else:
            values[name] = _convert(value, hint, f"{prefix}{name}", where)
    return cls(**values)


def _override(config: Config, key: str, text: str) -> None:
    known = keys()
    path = key if key in known else None
    if path is None:
        endings = [k for k in known if k.endswith(f".{key}") and _is_there(config, k)]
        if len(endings) > 1:
            raise ConfigError(f"--{key} could be any of {', '.join(endings)}: write the whole key")
        if not endings:
            raise _unknown(key, "command line", known + [k.split(".")[-1] for k in known])
        path = endings[0]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *sections, name = path.split(".")
    target = config
    for section in sections:
        if getattr(target, section) is None:
            setattr(target, section, _section(typing.get_type_hints(type(target))[section])())
        target = getattr(target, section)
    setattr(target, name, _convert(value, typing.get_type_hints(type(target))[name], path, "command line"))


def _is_there(config: Config, key: str) -> bool:
    """Whether no section on the way to the key is null: one that is must be asked for by its name."""
    target = config
    for section in key.split(".")[:-1]:
        target = getattr(target, section)
        if target is None:
            return False
    return True


def _convert(value: Any, hint: Any, key: str, where: str):
    """``value`` as the type in ``hint``, or a ConfigError. An int serves as a float; nothing else is converted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(value, inner, key, where)
    if origin is Literal:
        # YAML reads a bare `off` as false.
        value = "off" if value is False and "off" in arguments else value
        if value in arguments:
            return value
        raise ConfigError(f"{where}: {key} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    if origin is list:
        if isinstance(value, list):
            return [_convert(v, arguments[0], f"{key}[{i}]", where) for i, v in enumerate(value)]
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                pass
    elif hint is bool or hint is str:
        if isinstance(value, hint):
            return value
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    name = f"list of {arguments[0].__name__}" if origin is list else hint.__name__
    raise ConfigError(f"{where}: {key} must be {name}, got {value!r} ({type(value).__name__})")
