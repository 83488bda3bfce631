"""DVS128 Gesture: 11 gestures of 29 people under 5 illuminations, 1,176 training and 288 test samples.

The original folder (``DvsGesture``) has ``trials_to_train.txt`` and ``trials_to_test.txt``, each a list of recordings.
A recording ``userNN_LIGHT.aedat`` (AEDAT 3.1) contains several gestures; ``userNN_LIGHT_labels.csv`` lists them as
``class,startTime_usec,endTime_usec``. A sample is the events with start <= t < end, and its label is class - 1.

Source: Amir et al., "A Low Power, Fully Event-Based Gesture Recognition System" (CVPR 2017). The training and test
lists contain different people.
"""

import re
from pathlib import Path

import numpy as np

from sewsnn.data.aedat import Recording, read_aedat3
from sewsnn.data.event_store import INDEX, Sample, check_split, open_prepared, open_samples, write_sample
from sewsnn.data.events import Events
from sewsnn.data.loading import LoadedSource
from sewsnn.data.source import Options
from sewsnn.errors import DataError, UnreadableError, short
from sewsnn.files import read_regular, text_of

FOLDER = "DvsGesture"
LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
CLASSES = 11
PUBLISHED = {"train": 1176, "test": 288}
VALIDATION_PEOPLE = 5
_TRIAL = re.compile(r"user(\d+)\w*\.aedat")
_LABEL_LINE = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,18})\s*,\s*(\d{1,18})\s*")


def open_dvs128_gesture(options: Options) -> LoadedSource:
    """Opens the prepared data set in ``options.root``.

    ``options.split`` selects the test set:

    - ``paper``: the published training and test lists.
    - ``validation``: the last 5 people of the training list become the test set, and the test list is not used. Choose
      hyperparameters with this split.

    Raises:
        DataError: the folder is not prepared, or a file is damaged.
        ValueError: ``options.split`` is unknown.
    """
    check_split(options.split, SPLITS)
    folder, index = open_prepared("dvs128_gesture", options, CLASSES, LISTS)
    return open_samples(folder, SPLITS[options.split](index.samples), CLASSES, options)


def _paper(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    return [s for s in samples if s.part == "train"], [s for s in samples if s.part == "test"]


def _validation(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    samples = _paper(samples)[0]
    last = sorted({_person(s.recording) for s in samples})[-VALIDATION_PEOPLE:]
    return [s for s in samples if _person(s.recording) not in last], [
        s for s in samples if _person(s.recording) in last
    ]


SPLITS = {"paper": _paper, "validation": _validation}


def _person(recording: str) -> int:
    match = _TRIAL.fullmatch(recording)
    if not match:
        raise DataError(
            f"{INDEX} is damaged: {short(recording)} is not the name of a recording; remove the file and prepare again"
        )
    return int(match[1])


def recordings(root: Path) -> list[tuple[str, str]]:
    """Lists ``(recording, "train" or "test")`` from the lists in the original folder, or in its folder ``DvsGesture``.

    Raises:
        DataError: a list is missing or invalid, or a file that it names is missing.
    """
    root = original(root)
    found: dict[str, str] = {}
    for part, name in LISTS.items():
        for number, line in enumerate(_lines(root / name), 1):
            trial = line.strip()
            if not trial:
                continue
            where = f"{root / name}, line {number}"
            if not _TRIAL.fullmatch(trial):
                raise DataError(f"{where}: {trial[:80]!r} is not a name like userNN_LIGHT.aedat", str(root / name))
            if trial in found:
                raise DataError(
                    f"{where}: {trial} is listed twice (first in the {found[trial]} list)", str(root / name)
                )
            for path in (root / trial, _labels_file(root, trial)):
                if not path.is_file():
                    raise DataError(f"{where}: {path} is missing", str(path))
            found[trial] = part
        if part not in found.values():
            raise DataError(f"{root / name} lists no recordings", str(root / name))
    return list(found.items())


def parts(planned: list[tuple[str, str]]) -> dict[str, set[str]]:
    """Returns groups of recordings: the training list and the test list. A group without a readable recording is an
    error."""
    return {f"the {part} list": {recording for recording, of in planned if of == part} for part in LISTS}


def original(root: Path) -> Path:
    return root / FOLDER if (root / FOLDER).is_dir() else root


def sources(root: Path, recording: str) -> list[Path]:
    """Returns the files from which the samples of a recording are made."""
    return [original(root) / recording, _labels_file(original(root), recording)]


def prepare_recording(root: Path, recording: str, part: str, output: Path) -> tuple[list[Sample], Recording, list[str]]:
    """Writes the samples of a recording. The returned remarks describe data that is unusual but still used.

    Raises:
        DataError: the recording or its labels file is damaged.
    """
    path, labels = sources(root, recording)
    found = read_aedat3(path)
    t = found.events.t
    samples, remarks = [], []
    for number, (label, start, end) in enumerate(read_labels(labels)):
        first, last = np.searchsorted(t, (start, end))
        if first == last:
            raise DataError(
                f"{path} has no events from {start:,} to {end:,} us, where {labels.name} lists a gesture", str(path)
            )
        if end > t[-1] + 1:
            remarks.append(f"{path} ends at {t[-1]:,} us, but a gesture in {labels.name} ends at {end:,} us")
        gesture = Events(*(field[first:last] for field in found.events))
        name = f"{part}/{path.stem}_{number:02d}_{label:02d}.npy"
        samples.append(write_sample(output, name, label, part, recording, gesture))
    return samples, found, remarks


def read_labels(path: Path) -> list[tuple[int, int, int]]:
    """Returns ``(label, start, end)`` of each gesture; start and end are in microseconds. Raises DataError, which names
    the file and the line."""
    lines = _lines(path)
    if not lines or lines[0].replace(" ", "").strip() != "class,startTime_usec,endTime_usec":
        raise DataError(f"{path}: the first line must be class,startTime_usec,endTime_usec", str(path))
    labels = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        match = _LABEL_LINE.fullmatch(line)
        kind, start, end = map(int, match.groups()) if match else (0, 0, 0)
        if not (1 <= kind <= CLASSES and start < end):
            raise DataError(
                f"{path}, line {number}: expected a class from 1 to {CLASSES}, a start and a later end in "
                f"microseconds; got {line[:80]!r}",
                str(path),
            )
        labels.append((kind - 1, start, end))
    if not labels:
        raise DataError(f"{path} lists no gestures", str(path))
    return labels


def count_remarks(samples: list[Sample]) -> list[str]:
    counts = {part: sum(s.part == part for s in samples) for part in PUBLISHED}
    if counts == PUBLISHED:
        return []
    return [
        f"the {part} list has {counts[part]:,} of the {most:,} published samples" for part, most in PUBLISHED.items()
    ]


def _labels_file(root: Path, recording: str) -> Path:
    return root / f"{recording.removesuffix('.aedat')}_labels.csv"


def _lines(path: Path) -> list[str]:
    try:
        return text_of(read_regular(path)).splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (at offset {error.start:,})", str(path)) from None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
