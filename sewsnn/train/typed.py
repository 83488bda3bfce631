"""Converts nested dictionaries to the dataclasses of a configuration. Unknown keys and values of the wrong type are
errors."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from sewsnn.errors import ConfigError, by_nearness, short
from sewsnn.train.schema import Config


def keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Returns all keys as dotted paths."""
    out = []
    for name, hint in typing.get_type_hints(cls).items():
        section = section_of(hint)
        out += keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return out


def sections(cls: type = Config, prefix: str = "") -> list[str]:
    """Returns all sections as dotted paths."""
    out = []
    for name, hint in typing.get_type_hints(cls).items():
        if section := section_of(hint):
            out += [prefix + name, *sections(section, f"{prefix}{name}.")]
    return out


def said(content: Any, prefix: str = "") -> Iterator[str]:
    """Yields the keys to which nested dictionaries give a value, as dotted paths."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            yield from said(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Returns the keys in which two configurations, given as dictionaries, differ."""
    out = []
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            out += differences(x, y, f"{prefix}{key}.")
        elif x != y:
            out.append(f"{prefix}{key}")
    return out


def section_of(hint: Any) -> type | None:
    """Returns the dataclass of a section, which may be optional; None if the type is that of a value."""
    for choice in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(choice):
            return choice
    return None


def unknown_key(key: str, where: str, known: list[str]) -> ConfigError:
    """Returns the error for an unknown key, which names the nearest known keys."""
    if key in keys():  # a dotted key, as on the command line
        section, _, name = key.rpartition(".")
        return ConfigError(f"{where}: unknown key {key!r}; in a file, write {name} below {section.replace('.', ': ')}:")
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.4)
    if not near:  # a known name in the wrong section
        near = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    hint = f"the nearest is {near[0]!r}" if near else f"the nearest are {', '.join(by_nearness(key, set(known))[:8])}"
    return ConfigError(f"{where}: unknown key {short(key)}; {hint}")


def fill(target: Any, content: Any, prefix: str, where: str) -> Any:
    """Sets the fields of a dataclass, and of its sections, to the values in a dictionary. Other fields keep their
    values.

    Args:
        target: the dataclass.
        content: the dictionary.
        prefix: the path of the section with a trailing dot, for messages.
        where: the file or other source of the content, for messages.

    Returns:
        ``target``.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    if not isinstance(content, dict):
        name = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{where}: {name} must be a mapping of keys to values, got {short(content)}")
    hints = typing.get_type_hints(type(target))
    for name, value in content.items():
        if name not in hints:
            known = [k for k in keys() if k.startswith(prefix)] + [prefix + n for n in hints if section_of(hints[n])]
            raise unknown_key(f"{prefix}{name}", where, known)
        hint = hints[name]
        section = section_of(hint)
        if section and (value is not None or section is hint):
            inner = getattr(target, name) or section()
            value = fill(inner, {} if value is None else value, f"{prefix}{name}.", where)
        elif not section:
            value = convert(value, hint, f"{prefix}{name}", where)
        setattr(target, name, value)
    return target


def is_optional(hint: Any) -> bool:
    """Returns whether the type allows None."""
    return type(None) in typing.get_args(hint) and typing.get_origin(hint) in (types.UnionType, typing.Union)


def convert(value: Any, hint: Any, key: str, where: str) -> Any:
    """Converts a value to the type of its key. Raises ConfigError if the type does not match."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_optional(hint):
        if value is None:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return convert(value, inner, key, where)
    if origin is Literal:
        # YAML reads a bare `off` as false.
        value = "off" if value is False and "off" in arguments else value
        if isinstance(value, str) and value in arguments:
            return value
        names = ", ".join(map(repr, by_nearness(value, arguments) if isinstance(value, str) else arguments))
        raise ConfigError(f"{where}: {key} must be one of {names}, got {short(value)}")
    if origin is list:
        if isinstance(value, list):
            return [convert(v, arguments[0], f"{key}[{i}]", where) for i, v in enumerate(value)]
    elif hint is float:
        # YAML 1.1 reads 1e-3 as text
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
    elif hint is bool or hint is str:
        if isinstance(value, hint):
            return value
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    name = f"list of {arguments[0].__name__}" if origin is list else hint.__name__
    raise ConfigError(f"{where}: {key} must be {name}, got {short(value)} ({type(value).__name__})")
