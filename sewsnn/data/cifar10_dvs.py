"""CIFAR10-DVS: 10,000 recordings of moving CIFAR-10 images on a screen, 1,000 in each of ten classes.

The original folder has one folder per class with files ``cifar10_CLASS_NUMBER.aedat`` (AEDAT 2.0); each file is one
sample. The sensor was mounted so that x = 127 - y', y = 127 - x' and p = 1 - p', where x', y' and p' are the values in
the file.

Source: Li et al., "CIFAR10-DVS: An Event-Stream Dataset for Object Classification" (Frontiers in Neuroscience, 2017);
the orientation follows the code of the SEW ResNet paper.
"""

import re
from pathlib import Path

import torch

from sewsnn.data.aedat import Recording, read_aedat2
from sewsnn.data.event_store import Sample, check_split, open_prepared, open_samples, write_sample
from sewsnn.data.events import Events
from sewsnn.data.loading import LoadedSource
from sewsnn.data.source import Options
from sewsnn.errors import DataError, UnreadableError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PUBLISHED = 1000  # recordings per class
_SPLIT_SEED = 0  # the split does not depend on the seed of the run


def open_cifar10_dvs(options: Options) -> LoadedSource:
    """Opens the prepared data set in ``options.root``.

    The data set has no official split. ``options.split`` selects one; in each class of 1,000 recordings, one tenth
    becomes the test set:

    - ``paper``: the last tenth in lexicographic order of the file names.
    - ``first``: the first tenth by number (0 to 99), as in several later papers.
    - ``random``: a tenth drawn with a fixed seed.

    Raises:
        DataError: the folder is not prepared, or a file is damaged.
        ValueError: ``options.split`` is unknown.
    """
    check_split(options.split, SPLITS)
    folder, index = open_prepared("cifar10_dvs", options, len(CLASSES), ("",))
    train, test = [], []
    # Files that were left out still count for the split, so that no other file moves between training and test.
    names = [s.recording for s in index.samples] + list(index.left_out)
    for label, name in enumerate(CLASSES):
        tested = SPLITS[options.split](sorted(r for r in names if r.split("/")[0] == name))
        for sample in index.samples:
            if sample.label == label:
                (test if sample.recording in tested else train).append(sample)
    return open_samples(folder, (train, test), len(CLASSES), options)


def _paper(names: list[str]) -> set[str]:
    return set(names[_trained(names) :])


def _first(names: list[str]) -> set[str]:
    return set(sorted(names, key=_number)[: len(names) - _trained(names)])


def _random(names: list[str]) -> set[str]:
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    return {names[i] for i in order[_trained(names) :]}


def _trained(names: list[str]) -> int:
    """Returns nine tenths of ``names``, rounded up as in the code of the paper."""
    return -(-9 * len(names) // 10)


SPLITS = {"paper": _paper, "first": _first, "random": _random}


def _number(name: str) -> tuple[int, str]:
    digits = re.findall(r"\d+", name)
    return (int(digits[-1]), name) if digits else (0, name)


def recordings(root: Path) -> list[tuple[str, str]]:
    """Lists the original recordings as ``(CLASS/FILE, "")``, each class in lexicographic order.

    Raises:
        DataError: the folder of a class is missing or has no recordings.
    """
    found = []
    for name in CLASSES:
        folder = root / name
        try:
            files = sorted(path.name for path in folder.iterdir() if path.suffix == ".aedat" and path.name[0] != ".")
        except OSError as error:
            raise UnreadableError(
                f"cannot read {folder}: {error.strerror or error}; expected the unpacked folders {CLASSES[0]} to "
                f"{CLASSES[-1]}",
                str(folder),
            ) from None
        if not files:
            raise DataError(f"{folder} has no recordings (*.aedat)", str(folder))
        found += [(f"{name}/{file}", "") for file in files]
    return found


def parts(planned: list[tuple[str, str]]) -> dict[str, set[str]]:
    """Returns groups of recordings: each class, and the training and test sets of ``split: paper``. A group without a
    readable recording is an error."""
    found, tested = {}, set()
    for name in CLASSES:
        names = sorted(recording for recording, _ in planned if recording.split("/")[0] == name)
        found[f"class {name}"] = set(names)
        tested |= _paper(names)
    names = {recording for recording, _ in planned}
    return {"the training part": names - tested, "the test part": tested} | found


def sources(root: Path, recording: str) -> list[Path]:
    return [root / recording]


def prepare_recording(root: Path, recording: str, part: str, output: Path) -> tuple[list[Sample], Recording, list[str]]:
    """Writes one recording as a sample. Raises DataError if the recording is damaged or empty."""
    path = root / recording
    found = read_aedat2(path)
    t, x, y, p = found.events
    if not len(t):
        raise DataError(f"{path} has no events", str(path))
    name = recording.split("/")[0]
    events = Events(t, 127 - y, 127 - x, 1 - p)
    file = f"{name}/{path.stem}.npy"
    return [write_sample(output, file, CLASSES.index(name), part, recording, events)], found, []


def count_remarks(samples: list[Sample]) -> list[str]:
    counts = [sum(s.label == label for s in samples) for label in range(len(CLASSES))]
    return [
        f"{name} has {count:,} of the {PUBLISHED:,} published samples"
        for name, count in zip(CLASSES, counts, strict=True)
        if count != PUBLISHED
    ]
