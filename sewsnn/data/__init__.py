"""Data sets by name: :func:`create_data`."""

import difflib

from sewsnn.data.digits import Digits
from sewsnn.data.source import DataSource

__all__ = ["DataSource", "create_data", "list_data"]

_SOURCES = {"digits": Digits}


def list_data() -> list[str]:
    """The names :func:`create_data` knows."""
    return sorted(_SOURCES)


def create_data(name: str, **kwargs) -> DataSource:
    """Opens a data set.

    Args:
        name: one of :func:`list_data`.
        kwargs: ``batch_size``, ``seed`` and what else the data set takes.

    Raises:
        ValueError: no such data set; the message names the nearest.
    """
    if name not in _SOURCES:
        near = difflib.get_close_matches(name, _SOURCES, n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise ValueError(f"unknown data set {name!r}{hint}; known: {', '.join(list_data())}")
    return _SOURCES[name](**kwargs)
