"""Prepared event data: one file per sample, and an index that is written last and marks the set as complete.

A sample is a ``.npy`` file with N records of ``t`` (uint32, microseconds since its first event), ``x``, ``y`` and ``p``
(uint8), sorted by time; ``numpy.load`` reads it. ``index.json`` lists the samples with label, number of events and
CRC-32 of each file, and carries a checksum of its own.
"""

import io
import json
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sewsnn.data.events import SPLITS, Events, integrate_events
from sewsnn.data.loading import LoadedSource
from sewsnn.data.source import Options
from sewsnn.errors import DataError, UnreadableError, plain, short
from sewsnn.files import read_regular, text_of, write_atomic, write_text

INDEX, JOURNAL = "index.json", "journal.jsonl"
FORMAT = "sewsnn events 1"
RECORD = np.dtype([("t", "<u4"), ("x", "u1"), ("y", "u1"), ("p", "u1")])
SIZE = 128
_MOST = 2**15 - 1  # the largest count of events that int16 frames can hold


class Sample(NamedTuple):
    """One entry of the index.

    Attributes:
        file: path of the sample, relative to the index.
        label: class, 0 to the number of classes - 1.
        part: DVS128 Gesture: ``train`` or ``test``, from the published lists. Otherwise empty.
        recording: the original file.
        events: number of events.
        crc: CRC-32 of the file.
    """

    file: str
    label: int
    part: str
    recording: str
    events: int
    crc: int


class Index(NamedTuple):
    """The content of a prepared folder.

    Attributes:
        name: the data set.
        root: the folder of the original files.
        samples: the samples.
        left_out: the files that were left out, and why.
        remarks: notes for the report.
    """

    name: str
    root: str
    samples: list[Sample]
    left_out: dict[str, str]
    remarks: list[str]


def write_sample(folder: Path, file: str, label: int, part: str, recording: str, events: Events) -> Sample:
    """Writes a sample. Raises UserError if the file cannot be written, and DataError if there are no events or the
    recording is too long."""
    if not len(events.t):
        raise DataError(f"{recording} has no events for {file}", recording)
    t = events.t - events.t[0]
    if t[-1] >= 2**32:
        raise DataError(f"{recording}: {file} would last {t[-1]:,} us, more than the limit of 2^32 us", recording)
    records = np.empty(len(t), RECORD)
    for name, values in zip(RECORD.names, (t, *events[1:]), strict=True):
        records[name] = values
    buffer = io.BytesIO()
    np.save(buffer, records, allow_pickle=False)
    write_atomic(folder / file, lambda stream: stream.write(buffer.getbuffer()))
    return Sample(file, label, part, recording, len(t), zlib.crc32(buffer.getbuffer()))


def read_sample(folder: Path, sample: Sample) -> np.ndarray:
    """Returns the ``[N]`` records of a sample. Raises DataError, which names the file, if its content differs from what
    was written."""
    path = folder / sample.file
    try:
        data = read_regular(path)
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    if zlib.crc32(data) != sample.crc:
        raise DataError(
            f"{path} has changed since it was prepared: the checksum of its {len(data):,} bytes differs from {INDEX}. "
            "Remove the file and prepare again; only its recording is read again",
            str(path),
        )
    try:
        file = io.BytesIO(data)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != RECORD or shape != (sample.events,):
            raise ValueError(f"{dtype} of shape {shape}")
        return np.frombuffer(data, RECORD, sample.events, file.tell())  # np.load would copy the data twice
    except ValueError as error:
        raise DataError(f"{path} does not hold {sample.events:,} events: {error}", str(path)) from None


def write_index(folder: Path, index: Index) -> None:
    """Writes the index with its checksum."""
    content = index._asdict() | {"format": FORMAT, "samples": [list(sample) for sample in index.samples]}
    write_text(folder / INDEX, json.dumps(content | {"crc": _crc(content)}, indent=0))


def read_index(folder: Path) -> Index | None:
    """Reads the index. Returns None if the file does not exist. Raises DataError if its content differs from what was
    written."""
    path = folder / INDEX
    try:
        content = json.loads(text_of(read_regular(path)))
        crc = content.pop("crc")
        if content.get("format") != FORMAT:
            raise DataError(f"{path} has the format {short(content.get('format'))}; expected {FORMAT!r}", str(path))
        if crc != _crc(content):
            raise ValueError("another checksum")
        samples = [to_sample(entry) for entry in content["samples"]]
        index = Index(content["name"], content["root"], samples, content["left_out"], content["remarks"])
        for texts in ([index.name, index.root], list(index.left_out), list(index.left_out.values()), index.remarks):
            check_kinds(texts, [str] * len(texts))
        return index
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(f"{path} is damaged; remove it and prepare again", str(path)) from None


def to_sample(entry) -> Sample:
    """Converts an entry of the JSON index to a sample. Raises TypeError or ValueError if the entry is invalid."""
    check_kinds(entry, (str, int, str, str, int, int))
    sample = Sample(*entry)
    path = PurePosixPath(sample.file)
    if sample.label < 0 or sample.events < 1 or path.is_absolute() or ".." in path.parts or "\0" in sample.file:
        raise ValueError(short(entry))
    return sample


def check_kinds(values, kinds) -> None:
    """Raises TypeError unless ``values`` is a list with exactly these types; a bool does not count as an int."""
    if type(values) is not list or [type(value) for value in values] != list(kinds):
        raise TypeError(short(values))


class EventSamples:
    """The samples of one split as int16 frames ``[T, 2, H, W]`` with ``H = W = frame_size``; see
    :func:`sewsnn.data.integrate_events`. A frame pixel counts the events of ``(128 / frame_size)^2`` sensor pixels."""

    def __init__(self, folder: Path, samples: list[Sample], options: Options):
        self.folder, self.samples = folder, samples
        self.T, self.split_by, self.frame_us = options.T, options.split_by, options.frame_us
        self.size = frame_pixels(options)

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, seed: int | None) -> tuple[Tensor, int]:
        sample = self.samples[index]
        records = read_sample(self.folder, sample)
        if self.size < SIZE:
            width = SIZE // self.size
            records = Events(records["t"], records["x"] // width, records["y"] // width, records["p"])
        try:
            frames = integrate_events(records, self.T, self.split_by, self.size, self.size, frame_us=self.frame_us)
        except ValueError as error:  # the index was made by another program
            raise DataError(f"{self.folder / sample.file}: {error}", str(self.folder / sample.file)) from None
        return narrow(frames, str(self.folder / sample.file)), sample.label


def narrow(frames: Tensor, name: str) -> Tensor:
    """Converts frames to int16, which halves the bytes that worker processes pass on. Raises DataError if a count does
    not fit."""
    most = int(frames.max())
    if most > _MOST:
        raise DataError(f"{name}: a pixel has {most:,} events in one frame; the limit is {_MOST:,}", name)
    return frames.to(torch.int16)


def open_prepared(name: str, options: Options, classes: int, parts: Collection[str]) -> tuple[Path, Index]:
    """Opens the prepared set in ``options.root``.

    Args:
        name: the data set.
        options: the options of the run.
        classes: number of classes; every label must be below it.
        parts: the allowed values of :attr:`Sample.part`.

    Returns:
        The folder and its index.

    Raises:
        DataError: the folder is missing, unfinished, damaged or holds another data set; the message says what to do.
        ValueError: ``split_by`` and ``frame_us`` do not match, or ``frame_size`` is not a divisor of 128.
    """
    check_frames(options)
    frame_pixels(options)
    command = f"sewsnn data prepare {name} --root ORIGINAL --output PREPARED"
    if options.root is None:
        raise DataError(f"data.root must name the folder of the prepared files. Create it with {command!r}")
    folder = Path(options.root)
    index = read_index(folder)
    if index is None and (folder / JOURNAL).exists():
        raise DataError(f"the preparation of {folder} is not finished. Run {command!r} again to resume it", str(folder))
    if index is None:
        raise DataError(
            f"data.root: {folder} holds no prepared files ({INDEX} is missing). Create them with {command!r}",
            str(folder),
        )
    if index.name != name:
        raise DataError(f"data.root: {folder} holds {plain(index.name)}, not {name}", str(folder))
    for sample in index.samples:
        if sample.label >= classes or sample.part not in parts:
            raise DataError(
                f"{folder / INDEX} is damaged: {short(sample.file)} has label {sample.label} and part "
                f"{short(sample.part)}, but {name} has {classes} classes; remove the file and prepare again",
                str(folder / INDEX),
            )
    if options.on_corrupt != "skip":
        for sample in index.samples:
            if not (folder / sample.file).exists():
                raise DataError(
                    f"{folder / sample.file} is missing. Prepare again; the other samples are kept",
                    str(folder / sample.file),
                )
    return folder, index


def check_frames(options: Options) -> None:
    """Raises ValueError if ``split_by`` is unknown, or if ``frame_us`` is not set exactly with ``duration``."""
    if options.split_by not in SPLITS:
        raise ValueError(f"data.split_by must be one of {', '.join(SPLITS)}, got {options.split_by!r}")
    if (options.split_by == "duration") != bool(options.frame_us):
        raise ValueError(
            "data.frame_us (microseconds per frame) must be set if, and only if, data.split_by is duration; got "
            f"data.frame_us {options.frame_us} and data.split_by {options.split_by!r}"
        )


def frame_pixels(options: Options) -> int:
    """Returns the width and height of the frames in pixels. Raises ValueError unless ``frame_size`` is 0 or a divisor
    of the sensor's 128."""
    size = options.frame_size or SIZE
    if size < 1 or SIZE % size:
        raise ValueError(
            f"data.frame_size must be 0 (all {SIZE} pixels) or a divisor of {SIZE}: 1, 2, 4, 8, 16, 32, 64 or {SIZE}; "
            f"got {size}"
        )
    return size


def open_samples(
    folder: Path, parts: tuple[list[Sample], list[Sample]], num_classes: int, options: Options
) -> LoadedSource:
    train, test = (EventSamples(folder, part, options) for part in parts)
    return LoadedSource(train, test, num_classes, 2, True, options)


def check_split(split: str, known: dict[str, Any]) -> None:
    """Raises ValueError unless ``split`` is one of the known splits."""
    if split not in known:
        raise ValueError(f"data.split must be one of {', '.join(known)}, got {split!r}")


def _crc(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
