"""Prepared event data: one file per sample, and an index that is written last and makes the set complete.

A sample is a ``.npy`` of N records ``t`` (uint32, microseconds since its first event), ``x``, ``y``, ``p`` (uint8), in
the order of time: ``numpy.load`` shows it. ``index.json`` lists the samples with label, number of events and CRC-32 of
each file; it carries a checksum of its own.
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
_MOST = 2**15 - 1  # of one counter in a sample's frames


class Sample(NamedTuple):
    """An entry of the index.

    Fields:
        file: relative to the index.
        label: below the number of classes.
        part: DVS128 Gesture: ``train`` or ``test``, by the lists; otherwise empty.
        recording: the original file.
        events, crc: number of events, CRC-32 of the file.
    """

    file: str
    label: int
    part: str
    recording: str
    events: int
    crc: int


class Index(NamedTuple):
    """What is prepared: of which data set, from where, the samples, the files left out and why, remarks."""

    name: str
    root: str
    samples: list[Sample]
    left_out: dict[str, str]
    remarks: list[str]


def write_sample(folder: Path, file: str, label: int, part: str, recording: str, events: Events) -> Sample:
    """Raises UserError if it cannot be written, DataError if there are no events or they do not fit."""
    if not len(events.t):
        raise DataError(f"{recording}: there are no events for {file}", recording)
    t = events.t - events.t[0]
    if t[-1] >= 2**32:
        raise DataError(f"{recording}: {file} would last {t[-1]:,} us, more than 2^32", recording)
    records = np.empty(len(t), RECORD)
    for name, values in zip(RECORD.names, (t, *events[1:]), strict=True):
        records[name] = values
    buffer = io.BytesIO()
    np.save(buffer, records, allow_pickle=False)
    write_atomic(folder / file, lambda stream: stream.write(buffer.getbuffer()))
    return Sample(file, label, part, recording, len(t), zlib.crc32(buffer.getbuffer()))


def read_sample(folder: Path, sample: Sample) -> np.ndarray:
    """``[N]`` records. Raises DataError, naming the file, unless it is what was written."""
    path = folder / sample.file
    try:
        data = read_regular(path)
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    if zlib.crc32(data) != sample.crc:
        raise DataError(
            f"{path} is not what was prepared: its {len(data):,} bytes have another checksum than {INDEX} says. Remove "
            "it, and prepare again: only its recording is read anew",
            str(path),
        )
    try:
        file = io.BytesIO(data)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != RECORD or shape != (sample.events,):
            raise ValueError(f"{dtype} of shape {shape}")
        return np.frombuffer(data, RECORD, sample.events, file.tell())  # np.load would copy it twice
    except ValueError as error:
        raise DataError(f"{path} does not hold {sample.events:,} events: {error}", str(path)) from None


def write_index(folder: Path, index: Index) -> None:
    content = index._asdict() | {"format": FORMAT, "samples": [list(sample) for sample in index.samples]}
    write_text(folder / INDEX, json.dumps(content | {"crc": _crc(content)}, indent=0))


def read_index(folder: Path) -> Index | None:
    """None where there is none. Raises DataError unless it is what was written."""
    path = folder / INDEX
    try:
        content = json.loads(text_of(read_regular(path)))
        crc = content.pop("crc")
        if content.get("format") != FORMAT:
            raise DataError(f"{path} is of the format {short(content.get('format'))}, not {FORMAT!r}", str(path))
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
        raise DataError(f"{path} is damaged; remove it, and prepare again", str(path)) from None


def to_sample(entry) -> Sample:
    """A sample as JSON has it. Raises TypeError or ValueError unless it is one."""
    check_kinds(entry, (str, int, str, str, int, int))
    sample = Sample(*entry)
    path = PurePosixPath(sample.file)
    if sample.label < 0 or sample.events < 1 or path.is_absolute() or ".." in path.parts or "\0" in sample.file:
        raise ValueError(short(entry))
    return sample


def check_kinds(values, kinds) -> None:
    """Raises TypeError unless ``values`` is a list of just these types: True is no number."""
    if type(values) is not list or [type(value) for value in values] != list(kinds):
        raise TypeError(short(values))


class EventSamples:
    """Samples as frames ``[T, 2, 128, 128]``, int16; see :func:`~sewsnn.data.events.integrate_events`."""

    def __init__(self, folder: Path, samples: list[Sample], options: Options):
        self.folder, self.samples = folder, samples
        self.T, self.split_by, self.frame_us = options.T, options.split_by, options.frame_us

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, seed: int | None) -> tuple[Tensor, int]:
        sample = self.samples[index]
        records = read_sample(self.folder, sample)
        try:
            frames = integrate_events(records, self.T, self.split_by, SIZE, SIZE, frame_us=self.frame_us)
        except ValueError as error:  # an index made by other means
            raise DataError(f"{self.folder / sample.file}: {error}", str(self.folder / sample.file)) from None
        return narrow(frames, str(self.folder / sample.file)), sample.label


def narrow(frames: Tensor, name: str) -> Tensor:
    """int16, half the bytes for the workers to pass on."""
    most = int(frames.max())
    if most > _MOST:
        raise DataError(f"{name}: a pixel has {most:,} events in one frame, more than {_MOST:,}", name)
    return frames.to(torch.int16)


def open_prepared(name: str, options: Options, classes: int, parts: Collection[str]) -> tuple[Path, Index]:
    """The prepared set in ``options.root``, whose samples have labels below ``classes`` and are of these ``parts``.

    Raises:
        DataError: it is not there, not finished, damaged, or of another data set; says what to do.
        ValueError: ``split_by`` and ``frame_us`` do not go together.
    """
    check_frames(options)
    command = f"sewsnn data prepare {name} --root ORIGINAL --output PREPARED"
    if options.root is None:
        raise DataError(f"data.root must name the folder of the prepared files; {command!r} makes it")
    folder = Path(options.root)
    index = read_index(folder)
    if index is None and (folder / JOURNAL).exists():
        raise DataError(f"{folder} is not prepared to the end; call {command!r} again: it goes on", str(folder))
    if index is None:
        raise DataError(
            f"data.root: {folder} holds no prepared files ({INDEX} is missing); {command!r} makes them",
            str(folder),
        )
    if index.name != name:
        raise DataError(f"data.root: {folder} holds {plain(index.name)}, not {name}", str(folder))
    for sample in index.samples:
        if sample.label >= classes or sample.part not in parts:
            raise DataError(
                f"{folder / INDEX} is damaged: {short(sample.file)} has label {sample.label} and part "
                f"{short(sample.part)}, of {name}'s {classes} classes; remove it, and prepare again",
                str(folder / INDEX),
            )
    if options.on_corrupt != "skip":
        for sample in index.samples:
            if not (folder / sample.file).exists():
                raise DataError(
                    f"{folder / sample.file} is missing; prepare again: what is there is kept",
                    str(folder / sample.file),
                )
    return folder, index


def check_frames(options: Options) -> None:
    if options.split_by not in SPLITS:
        raise ValueError(f"data.split_by must be one of {', '.join(SPLITS)}, got {options.split_by!r}")
    if (options.split_by == "duration") != bool(options.frame_us):
        raise ValueError(
            "data.frame_us (microseconds per frame) must be given with data.split_by: duration, and only then; got "
            f"{options.frame_us}, {options.split_by!r}"
        )


def open_samples(
    folder: Path, parts: tuple[list[Sample], list[Sample]], num_classes: int, options: Options
) -> LoadedSource:
    train, test = (EventSamples(folder, part, options) for part in parts)
    return LoadedSource(train, test, num_classes, 2, True, options)


def check_split(split: str, known: dict[str, Any]) -> None:
    if split not in known:
        raise ValueError(f"data.split must be one of {', '.join(known)}, got {split!r}")


def _crc(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
