"""Trains on data sets of tonic, or on any other sequence of ``(events, label)``: :func:`from_tonic`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sewsnn.data.event_store import check_frames, narrow
from sewsnn.data.events import integrate_events
from sewsnn.data.loading import LoadedSource
from sewsnn.data.source import Options
from sewsnn.errors import DataError


def from_tonic(
    train: Sequence[tuple[Any, int]],
    test: Sequence[tuple[Any, int]],
    num_classes: int,
    sensor_size: tuple[int, int, int],
    options: Options,
) -> LoadedSource:
    """Makes a data source of frames ``[T, 2, H, W]`` from sequences of events. tonic itself is neither needed nor
    imported.

    Args:
        train: the training set: ``len(train)`` and ``train[i] -> (events, label)``, such as a data set of tonic without
            a transform to frames. Events are structured arrays, or anything else that
            :func:`sewsnn.data.integrate_events` accepts, with t in microseconds. It must be picklable if worker
            processes are spawned.
        test: the test set, in the same form.
        num_classes: number of classes; labels are 0 to ``num_classes - 1``.
        sensor_size: tonic's ``(W, H, 2)``, in pixels.
        options: :class:`sewsnn.data.source.Options`. ``T``, ``split_by`` and ``frame_us`` define the frames,
            ``workers`` the number of processes that compute them.

    Returns:
        A :class:`~sewsnn.data.source.DataSource` with ``in_channels = 2`` and ``sequences = True``.

    Raises:
        ValueError: ``sensor_size``, ``num_classes`` or an option is out of range; the message names it.
        DataError: while loading, if the events or the label of a sample are invalid; the message names its index.
    """
    size = tuple(sensor_size)
    if len(size) != 3 or size[2] != 2 or min(size) < 1:
        raise ValueError(f"sensor_size must be (W, H, 2) with two polarities, got {size}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    check_frames(options)
    sets = (_Adapted(data, part, num_classes, size, options) for data, part in ((train, "train"), (test, "test")))
    return LoadedSource(*sets, num_classes, 2, True, options)


class _Adapted:
    def __init__(self, data, part: str, num_classes: int, size: tuple[int, int, int], options: Options):
        self.data, self.part, self.num_classes, self.size = data, part, num_classes, size
        self.T, self.split_by, self.frame_us = options.T, options.split_by, options.frame_us

    def __len__(self) -> int:
        return len(self.data)

    def load(self, index: int, seed: int | None) -> tuple[Tensor, int]:
        width, height, _ = self.size
        name = f"{self.part}[{index}]"
        events, label = self.data[index]
        try:
            label = int(label)
            if not 0 <= label < self.num_classes:
                raise ValueError(f"the label must be 0 to {self.num_classes - 1}, got {label}")
            frames = integrate_events(events, self.T, self.split_by, height, width, frame_us=self.frame_us)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: {error}", name) from None
        return narrow(frames, name), label
