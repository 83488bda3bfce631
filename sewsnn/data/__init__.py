"""Data sets by name (:func:`create_data`), event frames and temporal augmentation."""

from sewsnn.data.cifar10 import open_cifar10
from sewsnn.data.cifar10_dvs import open_cifar10_dvs
from sewsnn.data.digits import open_digits
from sewsnn.data.dvs_gesture import open_dvs128_gesture
from sewsnn.data.events import integrate_events
from sewsnn.data.generated import SHAPES, Generated
from sewsnn.data.imagenet import open_imagenet
from sewsnn.data.moving_digits import open_moving_digits
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
    "moving_digits": open_moving_digits,
}


def list_data() -> list[str]:
    """Returns the names that :func:`create_data` accepts, sorted: ``cifar10``, ``cifar10_dvs``, ``digits``, ..."""
    return sorted(_SOURCES)


def create_data(name: str, **kwargs) -> DataSource:
    """Opens a data set by name and returns its training and test batches.

    Args:
        name: one of :func:`list_data`, such as ``"cifar10"``.
        kwargs: the fields of :class:`sewsnn.data.source.Options`. ``batch_size`` (samples per batch of one process) and
            ``seed`` are required. All others have defaults; ``root`` names the folder of the files for every data set
            except ``digits``. ``generated=N`` returns N generated samples with the shape of the data set instead of its
            files.

    Returns:
        A :class:`~sewsnn.data.source.DataSource`: ``train_batches(epoch)``, ``test_batches()``, ``num_classes``,
        ``in_channels``, ``sequences``, ``steps_per_epoch``.

    Raises:
        TypeError: a keyword is not a field of ``Options``, or ``batch_size`` or ``seed`` is missing.
        ValueError: the name is unknown (the message names the nearest one), or an option is out of range (the message
            names it).
        DataError: a file is missing or damaged (the message names it), or ``generated`` is not available for this name.
        UserError: a library that this data set needs is not installed.
    """
    if not isinstance(name, str) or name not in _SOURCES:
        raise ValueError(unknown("data set", name, _SOURCES))
    options = Options(**kwargs)
    if options.generated:
        if name not in SHAPES:
            raise DataError(f"data.generated: no generated data for {name!r}; available for {', '.join(SHAPES)}")
        return Generated(SHAPES[name], options)
    return _SOURCES[name](options)
