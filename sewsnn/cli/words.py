"""Parsing the command line: the parser, configuration keys among the arguments, and numbers."""

import argparse
import os
import re
from collections.abc import Callable

from sewsnn.errors import ConfigError, UserError, short


class Parser(argparse.ArgumentParser):
    """An argument parser that knows its options and whether each takes a value.

    A command that also accepts configuration keys has ``set_defaults(overrides={})``. The keys may stand anywhere after
    the name of the command.
    """

    def __init__(self, *args, **kwargs):
        self.options: dict[str, bool] = {}
        self.commands = None
        super().__init__(*args, **kwargs)

    def add_argument(self, *args, **kwargs):
        action = super().add_argument(*args, **kwargs)
        self.options |= dict.fromkeys(action.option_strings, action.nargs != 0)
        return action

    def add_subparsers(self, **kwargs):
        self.commands = super().add_subparsers(**kwargs)
        return self.commands

    def parse(self, words: list[str]) -> argparse.Namespace:
        """Returns the parsed arguments. ``overrides`` holds the configuration keys and their values.

        Raises:
            ConfigError: a key has no value, or an argument is not expected.
        """
        chosen, place = self, 0
        while chosen.commands and place < len(words) and words[place] in chosen.commands.choices:
            chosen, place = chosen.commands.choices[words[place]], place + 1
        if chosen.get_default("overrides") is None:
            return self.parse_args(words)
        own, keys = split(words[place:], chosen.options)
        overrides = parse_overrides(keys)
        arguments, rest = self.parse_known_args(words[:place] + own)
        parse_overrides(rest)  # raises an error for what is left over
        arguments.overrides = overrides
        return arguments


def split(words: list[str], options: dict[str, bool]) -> tuple[list[str], list[str]]:
    """Splits the arguments into those of the command itself, and configuration keys with their values.

    Args:
        words: the arguments after the name of the command.
        options: the command's own options, and whether each takes a value. ``--resume`` takes ``auto`` or no value.
    """
    own, keys, place = [], [], 0

    def value() -> list[str]:
        """Returns the next word if it is a value."""
        nonlocal place
        if place == len(words) or words[place].startswith("--"):
            return []
        place += 1
        return [words[place - 1]]

    while place < len(words):
        word = words[place]
        place += 1
        name, equals, _ = word.partition("=")
        if word == "--":  # the words after it are not options
            own += [os.path.join(".", other) if other.startswith("-") else other for other in words[place:]]
            break
        if not word.startswith("--"):
            own.append(word)
        elif name not in options:
            keys += [word] if equals else [word, *value()]
        else:
            is_auto = f"{word}=auto" in options and words[place : place + 1] == ["auto"]
            takes = is_auto or (options[name] and not equals)
            own.append("=".join([word, *value()]) if takes else word)
    return own, keys


def parse_overrides(rest: list[str]) -> dict[str, str]:
    """Converts ``["--a.b", "1", "--c=2"]`` to ``{"a.b": "1", "c": "2"}``. If a key occurs twice, the last value counts,
    as for every option: the user's arguments may follow those of a script."""
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"command line: expected --key value, got {short(word)}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ConfigError(
                    f"command line: --{key} needs a value (--{key}=VALUE if the value begins with two dashes)"
                )
        overrides[key] = value
    return overrides


def whole(name: str, least: int, most: int) -> Callable[[str], int]:
    """Returns a parser for ``type=`` of the option ``name``: a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[-+]?[0-9]+", text.strip()):
            raise UserError(f"{name} must be a whole number, got {short(text)}")
        if len(text) > 20 or not least <= int(text) <= most:
            raise UserError(f"{name} must be from {least:,} to {most:,}, got {short(text)}")
        return int(text)

    return parse


def whole_list(name: str) -> Callable[[str], list[int]]:
    """Returns a parser for ``type=`` of the option ``name``: whole numbers separated by commas."""

    def parse(text: str) -> list[int]:
        if not re.fullmatch(r"\s*[-+]?[0-9]{1,20}\s*(,\s*[-+]?[0-9]{1,20}\s*)*", text):
            raise UserError(f"{name} must be whole numbers separated by commas, got {short(text)}")
        return [int(part) for part in text.split(",")]

    return parse
