"""Preparation of both event data sets: complete, resumable after any interruption, refused until it is finished."""

import json
import multiprocessing
import random
import resource
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from aedat_files import aedat2, aedat3, cifar10_dvs_folder, gesture_folder, packet

from sewsnn.cli import main
from sewsnn.data import cifar10_dvs, create_data, dvs_gesture, integrate_events
from sewsnn.data.cifar10_dvs import CLASSES
from sewsnn.data.event_store import INDEX, read_index
from sewsnn.data.preparing import prepare
from sewsnn.errors import DataError, UserError

PEOPLE = [*(f"user{i:02d}_led" for i in range(1, 8)), "user24_lab"]


def gestures(number, generator):
    """Three gestures of 40 + number events: ``(file, labels, {label: events})``; some events are in none."""
    events, labels = [], []
    for k in range(3):
        start = 1000 * (k + 1)
        t = sorted(generator.randrange(start, start + 500) for _ in range(40 + number))
        events += [(u, generator.randrange(128), generator.randrange(128), generator.randrange(2)) for u in t]
        events.append((start + 500, 1, 1, 1))  # the end is not within
        labels.append(((number + k) % 11 + 1, start, start + 500))
    half = len(events) // 2
    return aedat3(packet(events[:half], overflow=0), packet([], kind=0), packet(events[half:])), labels, events


@pytest.fixture
def gesture(tmp_path):
    generator = random.Random(0)
    made = {name: gestures(number, generator) for number, name in enumerate(PEOPLE)}
    files = {name: (data, labels) for name, (data, labels, _) in made.items()}
    root = gesture_folder(tmp_path / "original" / "DvsGesture", files, PEOPLE[:-1], PEOPLE[-1:])
    return root, made


@pytest.fixture
def cifar(tmp_path):
    generator = random.Random(1)

    def one():
        return [(10 * j, generator.randrange(128), generator.randrange(128), generator.randrange(2)) for j in range(50)]

    made = {name: [one() for _ in range(11)] for name in CLASSES}  # 10 of 11 to train with
    root = cifar10_dvs_folder(tmp_path / "cifar", {name: [aedat2(e) for e in files] for name, files in made.items()})
    return root, made


def command(name, root, output, *more):
    return ["data", "prepare", name, "--root", str(root), "--output", str(output), "--workers", "1", *more]


def batches(source):
    x, y = zip(*source.test_batches(), strict=True)
    return torch.cat(x, 1), torch.cat(y).tolist()


def test_dvs128_gesture_is_what_is_in_the_recordings(gesture, tmp_path, capsys):
    root, made = gesture
    assert main(command("dvs128_gesture", root.parent, tmp_path / "out")) == 0
    report = capsys.readouterr().out
    assert "24 samples" in report and "note: the train list has 21 of the 1,176 published samples" in report
    options = {"batch_size": 2, "seed": 0, "T": 5, "root": str(tmp_path / "out"), "split_by": "time"}
    source = create_data("dvs128_gesture", **options)
    assert (source.num_classes, source.in_channels, source.sequences, source.steps_per_epoch) == (11, 2, True, 11)
    frames, labels = batches(source)
    _, listed, events = made["user24_lab"]
    assert labels == [label - 1 for label, *_ in listed]
    for k, (_, start, end) in enumerate(listed):
        t, x, y, p = map(np.array, zip(*(e for e in events if start <= e[0] < end), strict=True))
        assert torch.equal(frames[:, k].int(), integrate_events({"t": t, "x": x, "y": y, "p": p}, 5, "time", 128, 128))
    validation = create_data("dvs128_gesture", **options, split="validation")
    assert {s.recording[:6] for s in validation.train.samples} == {"user01", "user02"}
    assert {s.recording[:6] for s in validation.test.samples} == {f"user{i:02d}" for i in range(3, 8)}
    with pytest.raises(ValueError, match=r"data\.split must be one of paper, validation, got 'random'"):
        create_data("dvs128_gesture", **options, split="random")


def test_cifar10_dvs_is_what_is_in_the_recordings(cifar, tmp_path):
    root, made = cifar
    report = prepare("cifar10_dvs", root, tmp_path / "out", workers=2)
    assert "110 samples, 5,500 events" in report and "airplane has 11 of the 1,000 published samples" in report
    options = {"batch_size": 8, "seed": 0, "T": 3, "root": str(tmp_path / "out")}
    frames, labels = batches(create_data("cifar10_dvs", **options))
    assert labels == list(range(10))
    # In lexicographic order 9 is the last of 0, 1, 10, 2 ... 9.
    t, x, y, p = map(np.array, zip(*made["bird"][9], strict=True))
    turned = {"t": t, "x": 127 - y, "y": 127 - x, "p": 1 - p}
    assert torch.equal(frames[:, 2].int(), integrate_events(turned, 3, "number", 128, 128))
    tested = {}
    for split in ("paper", "first", "random"):
        source = create_data("cifar10_dvs", **options, split=split)
        tested[split] = [{s.recording for s in part.samples} for part in (source.train, source.test)]
        assert len(tested[split][0]) == 100 and len(tested[split][1]) == 10 and not set.intersection(*tested[split])
    assert "cat/cifar10_cat_0.aedat" in tested["first"][1]
    assert tested["paper"][1] != tested["random"][1] != tested["first"][1]
    with pytest.raises(ValueError, match=r"data\.split must be one of paper, first, random, got 'official'"):
        create_data("cifar10_dvs", **options, split="official")


def test_a_folder_that_is_not_prepared_is_refused(gesture, tmp_path, capsys):
    root, _ = gesture
    out = tmp_path / "out"
    options = {"batch_size": 2, "seed": 0, "T": 5}
    with pytest.raises(DataError, match=r"data\.root must name the folder .*sewsnn data prepare dvs128_gesture --root"):
        create_data("dvs128_gesture", **options)
    for folder in (root, out):
        with pytest.raises(DataError, match=f"{folder} holds no prepared files .*sewsnn data prepare dvs128_gesture"):
            create_data("dvs128_gesture", **options, root=str(folder))
    (root / "user05_led.aedat").write_bytes((root / "user05_led.aedat").read_bytes()[:-3])
    assert main(command("dvs128_gesture", root, out)) == 1
    assert "user05_led.aedat: a packet has" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"is not finished. Run 'sewsnn data prepare dvs128_gesture"):
        create_data("dvs128_gesture", **options, root=str(out))
    with pytest.raises(DataError, match=f"{out} holds dvs128_gesture, not cifar10_dvs"):
        prepare("dvs128_gesture", root, out, workers=1, on_corrupt="skip")
        create_data("cifar10_dvs", **options, root=str(out))


def test_damaged_recordings_are_listed_and_can_be_mended(gesture, tmp_path, capsys):
    root, made = gesture
    out = tmp_path / "out"
    damaged = root / "user02_led.aedat"
    damaged.write_bytes(made["user02_led"][0][:-9])
    (root / "user03_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n12,1,2\n")
    report = prepare("dvs128_gesture", root, out, workers=1, on_corrupt="skip")
    assert "18 samples" in report and f"left out: {damaged}: a packet has" in report
    assert "user03_led_labels.csv, line 2: expected a class from 1 to 11" in report
    assert set(read_index(out).left_out) == {"user02_led.aedat", "user03_led.aedat"}
    kept = {path: path.stat().st_mtime_ns for path in out.glob("train/*.npy")}
    assert len(kept) == 15
    damaged.write_bytes(made["user02_led"][0])
    gesture_folder(root, {"user03_led": made["user03_led"][:2]}, PEOPLE[:-1], PEOPLE[-1:])
    assert "24 samples" in (report := prepare("dvs128_gesture", root, out, workers=1)) and "left out" not in report
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert "is already prepared" in prepare("dvs128_gesture", root, out, workers=1)


def test_a_disk_that_is_gone_is_not_taken_for_damaged_recordings(gesture, tmp_path, monkeypatch):
    """If all damaged recordings are left out, recordings of an earlier call must not count as a complete set."""
    root, _ = gesture
    out = tmp_path / "out"
    planned = dvs_gesture.recordings(root)
    monkeypatch.setattr(dvs_gesture, "recordings", lambda _: planned)
    for name in ("user05_led.aedat", "user05_led_labels.csv"):
        (root / name).rename(tmp_path / name)
        with pytest.raises(DataError, match=f"cannot read {root / name}: No such file or directory"):
            prepare("dvs128_gesture", root, out, workers=1, on_corrupt="skip")
        assert read_index(out) is None
        (tmp_path / name).rename(root / name)
    report = prepare("dvs128_gesture", root, out, workers=1, on_corrupt="skip")
    assert "24 samples" in report and "left out" not in report


def test_a_recording_that_is_left_out_moves_no_other_to_the_other_side(cifar, tmp_path):
    root, _ = cifar
    options = {"batch_size": 2, "seed": 0, "root": str(tmp_path / "out")}
    prepare("cifar10_dvs", root, tmp_path / "out", workers=1)
    whole = {split: create_data("cifar10_dvs", **options, split=split) for split in ("paper", "first", "random")}
    (root / "dog/cifar10_dog_3.aedat").write_bytes(b"")
    prepare("cifar10_dvs", root, tmp_path / "out", workers=1, on_corrupt="skip")
    for split, before in whole.items():
        for part in ("train", "test"):
            old, new = (
                {sample.recording for sample in getattr(source, part).samples}
                for source in (before, create_data("cifar10_dvs", **options, split=split))
            )
            assert new == old - {"dog/cifar10_dog_3.aedat"}


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "gone"])
def test_a_damaged_sample_is_named(cifar, tmp_path, damage):
    root, _ = cifar
    out = tmp_path / "out"
    prepare("cifar10_dvs", root, out, workers=1)
    options = {"batch_size": 2, "seed": 0, "T": 2, "root": str(out), "split_by": "duration", "frame_us": 250}
    path = out / "airplane" / "cifar10_airplane_9.npy"
    whole = path.read_bytes()
    if damage == "flip":
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(DataError, match=f"{path} has changed since it was prepared"):
                list(create_data("cifar10_dvs", **options).test_batches())
    elif damage == "cut":
        path.write_bytes(whole[:-20])
    elif damage == "other":
        path.write_bytes(path.with_name("cifar10_airplane_8.npy").read_bytes())
    else:
        path.unlink()
    with pytest.raises(DataError, match=f"{path} (is missing|has changed since it was prepared)") as caught:
        list(create_data("cifar10_dvs", **options).test_batches())
    assert caught.value.path in (None, str(path))
    source = create_data("cifar10_dvs", **options, on_corrupt="skip")
    assert sum(len(y) for _, y in source.test_batches()) == 9 and list(source.corrupt) == [str(path)]
    path.unlink(missing_ok=True)
    prepare("cifar10_dvs", root, out, workers=1)
    assert path.read_bytes() == whole and batches(create_data("cifar10_dvs", **options))[1] == list(range(10))


def test_a_damaged_index_is_refused(cifar, tmp_path):
    root, _ = cifar
    prepare("cifar10_dvs", root, tmp_path / "out", workers=1)
    path = tmp_path / "out" / INDEX
    text = path.read_bytes()
    refused = [text[:-5], b"", b"[]", b"{}", b"\xff\xfe", text.replace(b"airplane_0.npy", b"airplane_1.npy")]
    refused += [text[:i] + bytes([text[i] ^ 1]) + text[i + 1 :] for i in range(0, len(text), 997) if text[i] > 32]
    for content in refused:
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path} (is damaged|has the format)"):
            create_data("cifar10_dvs", batch_size=2, seed=0, root=str(tmp_path / "out"))
    assert "110 samples" in prepare("cifar10_dvs", root, tmp_path / "out", workers=1)
    assert path.read_bytes() == text


def test_wrong_types_in_an_index_or_a_journal_are_damage(cifar, tmp_path):
    """Files of other programs or older versions may have right checksums and wrong content. Preparing repairs them."""
    root, out = cifar[0], tmp_path / "out"
    prepare("cifar10_dvs", root, out, workers=1)
    journal, whole = out / "journal.jsonl", json.loads((out / INDEX).read_text())
    del whole["crc"]
    first = whole["samples"][0]
    wrong = {"samples": [None, [None], [first[:5]]], "name": [3], "root": [None], "remarks": [3, [3]]}
    wrong["left_out"] = [None, [1], {"a": 3}]
    values = ((0, 3), (0, "/etc/x"), (0, "../x"), (1, "a"), (1, True), (1, 99), (1, -1), (2, []), (2, "x"), (3, 5))
    for place, value in (*values, (4, "x"), (4, 0), (5, None)):
        wrong["samples"].append([[*first[:place], value, *first[place + 1 :]]])
    for key, of_key in wrong.items():
        for value in of_key:
            content = whole | {key: value}
            crc = zlib.crc32(json.dumps(content, sort_keys=True).encode())
            (out / INDEX).write_text(json.dumps(content | {"crc": crc}))
            with pytest.raises(DataError, match=f"{out / INDEX} is damaged"):
                create_data("cifar10_dvs", batch_size=2, seed=0, root=str(out))
    assert "is prepared in" in prepare("cifar10_dvs", root, out, workers=1)
    head, line, *lines = journal.read_text().split("\n")
    entry = json.loads(line[9:])
    entries = [3, [1, 2], {"a": 1}, [*entry[:2], 7, *entry[3:]], [*entry[:2], [[1]], *entry[3:]], [[1], *entry[1:]]]
    entries += [[*entry[:3], "x", *entry[4:]], [*entry[:6], [5]], [*entry[:1], ["x"], *entry[2:]]]
    for text in [json.dumps(e) for e in entries] + ["[" * 100_000]:
        journal.write_text("\n".join([head, f"{zlib.crc32(text.encode()):08x} {text}", *lines]))
        assert "110 samples" in prepare("cifar10_dvs", root, out, workers=1)


@pytest.mark.parametrize("damaged", ["*/*.aedat", "cat/*.aedat", "*/*_9.aedat", "*/*_[!9]*.aedat"])
def test_a_class_or_part_of_which_nothing_is_left_is_no_set(cifar, tmp_path, damaged):
    """Cases: all recordings, a class, the paper's test set (the last of 0, 1, 10, 2 ... 9), its training set."""
    root, _ = cifar
    for file in root.glob(damaged):
        file.write_bytes(b"x")
    with pytest.raises(DataError, match=r"no recording of .* could be read, so the set is not usable: .*aedat"):
        prepare("cifar10_dvs", root, tmp_path / "out", workers=1, on_corrupt="skip")
    with pytest.raises(DataError, match="is not finished"):
        create_data("cifar10_dvs", batch_size=2, seed=0, root=str(tmp_path / "out"))


def test_what_cannot_be_prepared_is_refused(gesture, cifar, tmp_path):
    root, _ = gesture
    out = tmp_path / "out"
    prepare("dvs128_gesture", root, out, workers=1)
    with pytest.raises(UserError, match=f"{out} holds dvs128_gesture from {root}, not cifar10_dvs from {cifar[0]}"):
        prepare("cifar10_dvs", cifar[0], out, workers=1)
    with pytest.raises(UserError, match="must be a folder outside root"):
        prepare("dvs128_gesture", root, root / "out", workers=1)
    with pytest.raises(UserError, match=f"{cifar[0]} is not empty"):
        prepare("dvs128_gesture", root, cifar[0], workers=1)
    with pytest.raises(UserError, match=r"root: the folder .* does not exist"):
        prepare("cifar10_dvs", tmp_path / "none", out, workers=1)
    with pytest.raises(
        DataError, match=f"cannot read {root}/airplane: .*; expected the unpacked folders airplane to truck"
    ):
        prepare("cifar10_dvs", root, tmp_path / "new", workers=1)
    (root / "user07_led_labels.csv").unlink()
    with pytest.raises(DataError, match=r"trials_to_train.txt, line 7: .*user07_led_labels.csv is missing"):
        prepare("dvs128_gesture", root, tmp_path / "new", workers=1)
    for line, message in (
        ("../user01_led.aedat", "is not a name like"),
        ("user01_led.aedat", "listed twice"),
        ("\xff", "is not UTF-8 text"),
    ):
        (root / "trials_to_test.txt").write_text(line, encoding="latin-1")
        (root / "trials_to_train.txt").write_text("user01_led.aedat\n")
        with pytest.raises(DataError, match=f"trials_to_test.txt.*{message}"):
            prepare("dvs128_gesture", root, tmp_path / "new", workers=1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the first line must be class,startTime_usec,endTime_usec"),
        ("class,startTime_usec,endTime_usec\n", "lists no gestures"),
        ("class,startTime_usec,endTime_usec\n1,5\n", "line 2: expected a class"),
        ("class,startTime_usec,endTime_usec\n1,1000,1500\n0,5,6\n", "line 3: expected a class from 1 to 11"),
        ("class,startTime_usec,endTime_usec\n1,1500,1000\n", "line 2: expected a class"),
        ("class,startTime_usec,endTime_usec\n1,1000,1e9\n", "line 2: expected a class"),
        ("class,startTime_usec,endTime_usec\n1,90000,95000\n", "has no events from 90,000 to 95,000 us"),
    ],
)
def test_damaged_labels_are_named(gesture, tmp_path, text, message):
    root, _ = gesture
    (root / "user01_led_labels.csv").write_text(text)
    with pytest.raises(DataError, match=f"user01_led.*{message}"):
        prepare("dvs128_gesture", root, tmp_path / "out", workers=1)


def test_a_recording_that_ends_within_a_gesture_is_remarked(gesture, tmp_path):
    root, made = gesture
    _, labels, events = made["user01_led"]
    (root / "user01_led.aedat").write_bytes(aedat3(packet(events[:-20])))
    report = prepare("dvs128_gesture", root, tmp_path / "out", workers=1)
    assert (
        "user01_led.aedat ends at 3," in report
        and f"a gesture in user01_led_labels.csv ends at {labels[2][2]:,}" in report
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*.npy")}


def slowly(root, out, workers):
    read = cifar10_dvs.read_aedat2
    cifar10_dvs.read_aedat2 = lambda path: (time.sleep(0.005), read(path))[1]
    prepare("cifar10_dvs", root, out, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_it_goes_on(cifar, tmp_path, workers):
    """SIGKILL after random times: finished recordings are kept, and the final result equals an uninterrupted one."""
    root, _ = cifar
    prepare("cifar10_dvs", root, tmp_path / "whole", workers=1)
    out = tmp_path / "out"
    generator = random.Random(workers)
    kills, before = 0, 0
    for _ in range(8):
        process = multiprocessing.get_context("fork").Process(target=slowly, args=(root, out, workers))
        process.start()
        process.join(generator.uniform(0.01, 0.3))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if not (out / INDEX).exists():
            with pytest.raises(DataError, match=r"is not finished|holds no prepared files"):
                create_data("cifar10_dvs", batch_size=2, seed=0, root=str(out))
        done = len(contents(out))
        assert done >= before
        before = done
    assert kills
    assert "110 samples" in prepare("cifar10_dvs", root, out, workers=workers)
    assert contents(out) == contents(tmp_path / "whole")
    first, second = (json.loads((tmp_path / name / INDEX).read_text()) for name in ("whole", "out"))
    assert first == second
    assert not list(out.rglob(".*"))


def test_a_full_disk_is_named_and_nothing_is_half_written(gesture, tmp_path):
    """A limit on the size of files simulates a full disk: writing fails with an error of the system."""
    root, made = gesture
    _, _, events = made["user04_led"]
    many = [(1000 + j // 20, j % 128, 5, 1) for j in range(5000)]
    (root / "user04_led.aedat").write_bytes(aedat3(packet(many), packet([e for e in events if e[0] > 1500])))
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*user04_led_00_\d\d.npy: File too large"):
            prepare("dvs128_gesture", root, out, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(out.glob("*/user04*")) and not list(out.glob("*/.*")) and not (out / INDEX).exists()
    assert "24 samples" in prepare("dvs128_gesture", root, out, workers=1)


def test_a_journal_that_cannot_grow_is_named_and_goes_on(cifar, tmp_path):
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*journal.jsonl: File too large"):
            prepare("cifar10_dvs", cifar[0], out, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "110 samples" in prepare("cifar10_dvs", cifar[0], out, workers=1)
    assert create_data("cifar10_dvs", batch_size=2, seed=0, root=str(out)).steps_per_epoch == 50


def test_a_recording_that_changes_its_list_or_its_events_is_prepared_again(gesture, tmp_path):
    root, made = gesture
    options = {"batch_size": 2, "seed": 0, "root": str(tmp_path / "out")}
    prepare("dvs128_gesture", root, tmp_path / "out", workers=1)
    gesture_folder(root, {"user02_led": made["user03_led"][:2]}, PEOPLE[1:-1], [PEOPLE[0], PEOPLE[-1]])
    prepare("dvs128_gesture", root, tmp_path / "out", workers=1)
    source = create_data("dvs128_gesture", **options)
    assert {s.recording for s in source.test.samples} == {"user01_led.aedat", "user24_lab.aedat"}
    labels = [s.label for s in source.train.samples if s.recording == "user02_led.aedat"]
    assert labels == [label - 1 for label, *_ in made["user03_led"][1]]


def test_one_process_prepares_a_folder(gesture, tmp_path):
    root, _ = gesture
    (tmp_path / "out").mkdir()
    code = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    held = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out/.lock")], stdin=-1, stdout=-1)
    held.stdout.readline()
    try:
        with pytest.raises(UserError, match="is being prepared by another process"):
            prepare("dvs128_gesture", root, tmp_path / "out", workers=1)
    finally:
        held.communicate(b"\n")
    assert "24 samples" in prepare("dvs128_gesture", root, tmp_path / "out", workers=1)


@pytest.mark.parametrize("name", ["gesture", "cifar"])
def test_nothing_left_is_no_set(name, request, tmp_path):
    """If all recordings are damaged and skipped, it raises an error, and training still refuses the folder."""
    root, _ = request.getfixturevalue(name)
    for path in root.rglob("*.aedat"):
        path.write_bytes(b"#!AER-DAT")
    kind = {"gesture": "dvs128_gesture", "cifar": "cifar10_dvs"}[name]
    with pytest.raises(DataError, match="could be read, so the set is not usable"):
        prepare(kind, root, tmp_path / "out", workers=1, on_corrupt="skip")
    assert not (tmp_path / "out" / "index.json").exists()
