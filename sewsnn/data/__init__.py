"""Data sets by name: :func:`create_data`."""

from sewsnn.data.cifar10 import open_cifar10
from sewsnn.data.cifar10_dvs import open_cifar10_dvs
from sewsnn.data.digits import open_digits
from sewsnn.data.dvs_gesture import open_dvs128_gesture
from sewsnn.data.events import integrate_events
from sewsnn.data.generated import SHAPES, Generated
from sewsnn.data.imagenet import open_imagenet
from sewsnn.data.source import DataSource, Options
from sewsnn.data.temporal import random_temporal_delete
from sewsnn.data.tonic import from_tonic
from sewsnn.errors import DataError, unknown

__all__ = ["DataSource", "create_data", "from_tonic", "integrate_events", "list_data", "random_temporal_delete"]

_SOURCES = {
    "cifar10": open_cifar10,
    "cifar10_dvs": open_cifar10_dvs,
    "digits": open_digits,
    "dvs128_gesture": open_dvs128_gesture,
    "imagenet": open_imagenet,
}


def list_data() -> list[str]:
    """The names :func:`create_data` knows."""
    return sorted(_SOURCES)


def create_data(name: str, **kwargs) -> DataSource:
    """Opens a data set.

    Args:
        name: one of :func:`list_data`.
        kwargs: those of :class:`sewsnn.data.source.Options`: ``batch_size``, ``seed``, ``root`` ...

    Raises:
        ValueError: no such data set; the message names the nearest. Or an option makes no sense; it is named.
        DataError: its files are missing, or not what they should be; names them.
    """
    if not isinstance(name, str) or name not in _SOURCES:
        raise ValueError(unknown("data set", name, _SOURCES))
    options = Options(**kwargs)
    if options.generated:
        if name not in SHAPES:
            raise DataError(f"data.generated: there is nothing generated for {name!r}, only for {', '.join(SHAPES)}")
        return Generated(SHAPES[name], options)
    return _SOURCES[name](options)
