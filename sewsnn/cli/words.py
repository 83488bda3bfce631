"""Words of the command line."""

from sewsnn.errors import ConfigError


def join_auto(words: list[str]) -> list[str]:
    """``--resume auto`` as one word: it is an option with or without a value, and CONFIG may follow it."""
    joined: list[str] = []
    for word in words:
        if word == "auto" and joined[-1:] == ["--resume"]:
            joined[-1] = "--resume=auto"
        else:
            joined.append(word)
    return joined


def parse_overrides(rest: list[str]) -> dict[str, str]:
    """``["--a.b", "1", "--c=2"]`` as ``{"a.b": "1", "c": "2"}``."""
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"command line: expected --key value, got {word!r}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"command line: --{key} needs a value")
        overrides[key] = value
    return overrides
