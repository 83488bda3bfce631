"""Words of the command line."""

from sewsnn.errors import ConfigError


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
