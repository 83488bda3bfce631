"""The generated event data: what it holds, that it is always the same, and that its generation can be interrupted."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from runs import PROCESS

from sewsnn.data import create_data, event_sensor, integrate_events, moving_digits
from sewsnn.data.aedat import read_aedat3
from sewsnn.data.dvs_gesture import FOLDER
from sewsnn.data.event_store import INDEX
from sewsnn.data.moving_digits import MARKER
from sewsnn.errors import DataError, UserError
from sewsnn.locking import FolderLock

pytest.importorskip("sklearn.datasets")
pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"batch_size": 50, "seed": 0}
SMALL = {"train": 2, "test": 1}  # recordings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the complete set."""
    root = tmp_path_factory.mktemp("data") / "moving_digits"
    create_data("moving_digits", **OPTIONS, root=str(root))
    return root


@pytest.fixture
def small(monkeypatch):
    """Three recordings with one digit of each class."""
    monkeypatch.setattr(moving_digits, "PEOPLE", SMALL)
    monkeypatch.setattr(moving_digits, "OF_A_CLASS", {"train": 1, "test": 1})


def contents(root):
    """The bytes of every generated file; the journal and the index name the folder."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix not in (".json", ".jsonl"))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_samples_and_labels(whole):
    source = create_data("moving_digits", **OPTIONS, root=str(whole), T=4, frame_size=32)
    assert (source.num_classes, source.in_channels, source.sequences, source.steps_per_epoch) == (10, 2, True, 16)
    train, test = source.train.samples, source.test.samples
    assert np.bincount([s.label for s in train]).tolist() == [80] * 10
    assert np.bincount([s.label for s in test]).tolist() == [30] * 10
    assert not {s.recording for s in train} & {s.recording for s in test}
    numbers = [s.events for s in train + test]
    assert 2000 < np.median(numbers) < 6000 and min(numbers) > 500 and max(numbers) < 15_000
    x, labels = next(source.test_batches())
    assert x.shape == (4, 50, 2, 32, 32) and x.dtype == torch.int16 and labels.tolist() == [s.label for s in test[:50]]
    assert x.sum((0, 2, 3, 4)).tolist() == numbers[800:850]


def test_no_image_is_shown_twice():
    shown = [image.tobytes() for digits in moving_digits._planned().values() for _, image in digits]
    known = [image.tobytes() for images in moving_digits._images() for image in images]
    assert len(shown) == 1100 and all(shown.count(image) <= known.count(image) for image in set(shown))


def test_validation_split_leaves_the_test_list_alone(whole):
    source = create_data("moving_digits", **OPTIONS, root=str(whole), split="validation")
    assert (len(source.train), len(source.test)) == (600, 200)
    assert {s.part for s in source.train.samples + source.test.samples} == {"train"}
    with pytest.raises(ValueError, match=r"data\.split must be one of paper, validation, got 'random'"):
        create_data("moving_digits", **OPTIONS, root=str(whole), split="random")


@pytest.mark.parametrize("size", [1, 32, 64])
def test_a_frame_pixel_counts_the_events_of_its_square(whole, size):
    full, less = (
        next(create_data("moving_digits", **OPTIONS, root=str(whole), T=3, frame_size=n).test_batches())[0]
        for n in (0, size)
    )
    assert full.shape[-2:] == (128, 128) and less.shape[-2:] == (size, size)
    squares = full.unflatten(-1, (size, -1)).unflatten(-3, (size, -1)).sum((-3, -1))
    assert torch.equal(squares, less.long())


@pytest.mark.parametrize("size", [3, 48, 256])
@pytest.mark.parametrize("generated", [0, 4])
def test_only_divisors_of_the_sensor_are_sizes_of_frames(whole, size, generated):
    with pytest.raises(ValueError, match=rf"data\.frame_size must be 0 .* or a divisor of 128: .* got {size}"):
        create_data("moving_digits", **OPTIONS, root=str(whole), frame_size=size, generated=generated)


def test_other_data_ignores_the_size_of_frames():
    assert next(create_data("digits", **OPTIONS, frame_size=3).train_batches(0))[0].shape[-1] == 8
    shape = next(create_data("dvs128_gesture", **OPTIONS, generated=2, frame_size=16).train_batches(0))[0].shape
    assert shape[2:] == (2, 16, 16)


def test_files_are_the_same_on_every_machine(whole):
    """The first recording of the complete set has these bytes; a change of them needs a new version in MARKER."""
    data = (whole / FOLDER / "user01_led.aedat").read_bytes()
    assert f"{zlib.crc32(data):08x}" == "ab93533d"


def test_two_generations_are_equal(small, tmp_path):
    sources = [opened(tmp_path / name) for name in "ab"]
    assert [(len(source.train), len(source.test)) for source in sources] == [(20, 10)] * 2
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(contents(tmp_path / "a")) == 39


def opened(root, **options):
    return create_data("moving_digits", batch_size=5, seed=0, root=str(root), **options)


def process(root, code=""):
    """Opens the small set in another process, after ``code``."""
    lines = (
        "import os, signal, sys",
        "from sewsnn.data import create_data, moving_digits",
        f"moving_digits.PEOPLE, moving_digits.OF_A_CLASS = {SMALL}, {dict.fromkeys(SMALL, 1)}",
        code,
        f"source = create_data('moving_digits', batch_size=5, seed=0, root={str(root)!r})",
        "print(len(source.train), len(source.test))",
    )
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **PROCESS
    )


def test_a_killed_generation_resumes(small, tmp_path):
    """It is killed just before it finishes a file: the marker, a recording, a sample, the index."""
    opened(tmp_path / "whole")
    for last in (MARKER, "user02_led.aedat", "user03_led_03", INDEX):
        killer = (
            "replace = os.replace",
            "def kill(source, target):",
            f"    if {last!r} in str(target): os.kill(os.getpid(), signal.SIGKILL)",
            "    replace(source, target)",
            "os.replace = kill",
        )
        child = process(tmp_path / "killed", "\n".join(killer))
        child.communicate()
        assert child.returncode == -signal.SIGKILL and not moving_digits._is_finished(tmp_path / "killed"), last
    assert len(opened(tmp_path / "killed").train) == 20
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_processes_share_one_folder(tmp_path):
    children = [process(tmp_path / "data") for _ in range(2)]
    for child in children:
        output, error = child.communicate()
        assert child.returncode == 0 and output.splitlines()[-1] == "20 10", error


def test_a_full_disk_leaves_nothing_half_done(small, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 15:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        opened(tmp_path)
    monkeypatch.setattr(os, "fsync", sync)
    assert not moving_digits._is_finished(tmp_path) and len(opened(tmp_path).test) == 10


def test_what_was_lost_is_made_again(small, tmp_path):
    """A lost sample and a damaged index; a set without its recordings is complete."""
    opened(tmp_path)
    before = contents(tmp_path)
    sample = next((tmp_path / "prepared" / "test").iterdir())
    sample.unlink()
    assert len(opened(tmp_path).test) == 10 and contents(tmp_path) == before
    (tmp_path / "prepared" / INDEX).write_text("{")
    assert len(opened(tmp_path).test) == 10 and contents(tmp_path) == before
    shutil.rmtree(tmp_path / FOLDER)
    assert len(opened(tmp_path).test) == 10 and not (tmp_path / FOLDER).exists()


def test_other_folders_are_refused(small, tmp_path):
    with pytest.raises(DataError, match=r"data\.root must name a folder for the generated files"):
        create_data("moving_digits", **OPTIONS)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"data\.root: .* contains other files \(moving_digits\.txt is missing\)"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match=r"data\.root: .*notes\.txt is not a folder"):
        opened(tmp_path / "notes.txt")
    other = tmp_path / "other"
    other.mkdir()
    (other / MARKER).write_text("sewsnn moving digits 0\n")
    with pytest.raises(DataError, match="belongs to another version of sewsnn; remove it or choose another folder"):
        opened(other)


def test_waiting_has_a_limit(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(moving_digits, "_MOST_WAIT", 0.5)
    with FolderLock(tmp_path, "used"), pytest.raises(UserError, match="another process has been generating"):
        opened(tmp_path)
    assert "waiting for another process" in capsys.readouterr().out
    (tmp_path / ".lock").mkdir()  # nothing to wait for
    with pytest.raises(UserError, match=r"cannot write .*\.lock: Is a directory"):
        opened(tmp_path)


MOTION = event_sensor.Motion(x=60, y=66, reach=6, phase=0.1, direction=-1, pitch=10, noise=0)


def test_events_follow_the_light():
    """After one turn each pixel sees its first light again, so that it has sent as many on events as off events. The
    left edge of a square that moves to the right becomes darker, its right edge brighter."""
    square = np.full((4, 4), 16)
    events = event_sensor.record(square, MOTION, np.random.RandomState(0))
    frames = integrate_events(events, 1, "number", 128, 128)[0]
    assert len(events.t) > 1000 and torch.equal(frames[0], frames[1])
    assert events.t.min() >= 0 and events.t.max() < event_sensor.LENGTH_US
    right = MOTION._replace(phase=0.75, direction=1)  # sin is -1, and cos grows: to the right
    t, x, _, p = event_sensor.record(square, right, np.random.RandomState(0))
    first = t < 8 * event_sensor.STEP_US
    assert x[first & (p == 1)].mean() > x[first & (p == 0)].mean() + 20


def test_noise_is_added_and_time_stamps_are_those_of_the_seed():
    image = np.eye(8, dtype=int) * 16
    plain, noisy, again, other = (
        event_sensor.record(image, MOTION._replace(noise=noise), np.random.RandomState(seed))
        for noise, seed in ((0, 1), (50, 1), (50, 1), (50, 2))
    )
    assert len(noisy.t) == len(plain.t) + 50
    assert all(np.array_equal(a, b) for a, b in zip(noisy, again, strict=True))
    assert not np.array_equal(noisy.t, other.t)


def test_recordings_are_read_as_they_were_written(tmp_path):
    events = event_sensor.record(np.eye(8, dtype=int) * 16, MOTION._replace(noise=9000), np.random.RandomState(3))
    (tmp_path / "a.aedat").write_bytes(event_sensor.aedat3(events))
    found = read_aedat3(tmp_path / "a.aedat")
    assert (found.invalid, found.others, found.late) == (0, 0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(found.events, events, strict=True))
