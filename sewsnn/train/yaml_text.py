"""Reads YAML files written by people. Content that YAML would drop or misread silently is an error, and reading any
file is cheap.

The subset of YAML 1.1 is: mappings with text keys, lists, text, numbers, true, false and null. Anchors, aliases and
merge keys (``<<``) are allowed.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.reader import ReaderError

from sewsnn.errors import ConfigError, one_line, short
from sewsnn.files import open_regular

_MOST_BYTES = 2**20
_MOST_VALUES = 10_000  # limit with every alias expanded
_MOST_LEVELS = 32  # limit of nesting; a configuration has four levels

_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
# YAML 1.1 reads 010 as eight and 1:30 as ninety, which is not what people mean.
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)")


def read_yaml(path: str | Path) -> Any:
    """Returns the content of a UTF-8 YAML file; None if it is empty.

    Raises:
        ConfigError: the file cannot be read, is not a regular file, is too long, is not UTF-8, or :func:`parse_yaml`
            raises.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} is not a configuration: it is longer than {_MOST_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "it is UTF-16 text" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "it is not UTF-8 text"
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not a YAML file: {kind} (line {line}); save it as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Returns the content of YAML text; None if it is empty.

    Args:
        text: the text.
        where: its name, for messages.

    Raises:
        ConfigError: the text is not YAML, a key occurs twice or is not text, a value has a type that configurations do
            not use (such as ``!!set``), or the content is too long or too deeply nested with aliases expanded. The
            message names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except _RefusedError as refused:
        raise ConfigError(f"{where}, line {refused.line}: {refused}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"character {error.character:#x}" if isinstance(error.character, int) else "a character"
        raise ConfigError(f"{where} is not a YAML file: line {line}: {character} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where} is not a YAML file: {place}{one_line(reason)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" is a ValueError
        raise ConfigError(f"{where} is not a YAML file: {one_line(error)}") from None


class _RefusedError(Exception):
    """Valid YAML outside the supported subset."""

    def __init__(self, mark, reason: str):
        super().__init__(reason)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    """A loader that counts values and levels while it composes, so that it stops before it takes long or overflows the
    stack."""

    def __init__(self, text: str):
        self._level = self._composed = 0
        self._extents: dict[int, tuple[int, int]] = {}  # id of a node -> values and levels in it, aliases expanded
        super().__init__(text)

    def compose_node(self, parent, index):
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._composed += 1
        self._level += 1
        self._check_extent(mark, self._composed, self._level)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._extents:
            raise _RefusedError(mark, "an alias is inside the value that it refers to")
        if not is_alias:
            self._check_keys(node)
            self._extents[id(node)] = self._extent(node)
        self._level -= 1
        values, levels = self._extents[id(node)]
        self._check_extent(mark, values, self._level + levels)
        return node

    def _extent(self, node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        extents = [self._extents[id(part)] for part in parts]
        return 1 + sum(values for values, _ in extents), 1 + max((levels for _, levels in extents), default=0)

    @staticmethod
    def _check_extent(mark, values: int, levels: int) -> None:
        if values > _MOST_VALUES:
            raise _RefusedError(mark, f"more than {_MOST_VALUES:,} values, with aliases expanded")
        if levels > _MOST_LEVELS:
            raise _RefusedError(mark, f"more than {_MOST_LEVELS} levels of nesting")

    @staticmethod
    def _check_keys(node) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge") or not isinstance(key, yaml.ScalarNode):
                shown = short(key.value) if isinstance(key, yaml.ScalarNode) else "a collection"
                raise _RefusedError(key.start_mark, f"a key must be text, got {shown} ({_kind(key)})")
            line = key.start_mark.line + 1
            if key.value in lines:
                both = f"line {line}" if line == lines[key.value] else f"lines {lines[key.value]} and {line}"
                raise _RefusedError(
                    key.start_mark, f"the key {short(key.value)} occurs twice, in {both}; remove one of them"
                )
            lines[key.value] = line

    def construct_object(self, node, deep=False):
        if node.tag not in self.yaml_constructors:
            raise _RefusedError(node.start_mark, f"a value of type {_kind(node)} is not supported here")
        try:
            return super().construct_object(node, deep)
        except ConstructorError as error:  # a tag on another type of node
            raise _RefusedError(node.start_mark, one_line(error.problem)) from None
        except (ValueError, KeyError, IndexError, AttributeError, OverflowError):
            raise _RefusedError(node.start_mark, f"{short(node.value)} cannot be read as {_kind(node)}") from None

    def construct_plain_int(self, node):
        text = self.construct_scalar(node)
        if not _PLAIN_INT.fullmatch(text):
            raise _RefusedError(
                node.start_mark,
                f"{short(text)} is not a plain whole number (in YAML, 010 is octal and 1:30 has base 60)",
            )
        return self.construct_yaml_int(node)

    def construct_plain_float(self, node):
        text = self.construct_scalar(node)
        if ":" in text:
            raise _RefusedError(node.start_mark, f"{short(text)} has base 60 in YAML; write a plain number")
        return self.construct_yaml_float(node)


def _kind(node) -> str:
    return node.tag.replace(_TAG, "!!") if len(node.tag) < 80 else short(node.tag)


_Loader.yaml_constructors = {
    tag: SafeConstructor.yaml_constructors[tag] for kind in _KINDS if (tag := f"{_TAG}{kind}")
} | {f"{_TAG}int": _Loader.construct_plain_int, f"{_TAG}float": _Loader.construct_plain_float}
# Dates and "=" are read as text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
