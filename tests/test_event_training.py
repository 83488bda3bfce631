"""Smaller versions of the paper's event configurations learn, from recordings in the original layout to the result."""

import json
from pathlib import Path

import pytest
from aedat_files import aedat2, aedat3, cifar10_dvs_folder, gesture_folder, packet
from simulated_sensor import images_of, record
from thorough import THOROUGH

from sewsnn.cli import main
from sewsnn.data.cifar10_dvs import CLASSES

CONFIGS = Path(__file__).parent.parent / "configs"
KINDS = ("circle", "on", "off")
LENGTH_US = 10_000


def trained(config, root, output, *more):
    arguments = ["--data.root", str(root), "--output", str(output), "--amp", "off", "--threads", "1", *more]
    assert main(["train", str(CONFIGS / config), *arguments]) == 0
    return json.loads((output / "result.json").read_text())


def prepared(name, root, output):
    assert main(["data", "prepare", name, "--root", str(root), "--output", str(output), "--workers", "1"]) == 0


@pytest.fixture(scope="module")
def gestures(tmp_path_factory):
    """Three of the eleven gestures: a digit moves, lights up or goes out. Five people train, three test."""
    folder = tmp_path_factory.mktemp("gestures")
    recordings = {}
    for trial, image in enumerate(images_of([8], 8)[0]):
        packets, labels = [], []
        for k, kind in enumerate(KINDS):
            events = record(image, kind, seed=trial)
            events[:, 0] += LENGTH_US * k
            packets.append(packet(events.tolist()))
            labels.append((4 + k, LENGTH_US * k, LENGTH_US * k + 10_000))
        recordings[f"user{trial + 1:02d}_led"] = (aedat3(*packets), labels)
    names = list(recordings)
    root = gesture_folder(folder / "DvsGesture", recordings, names[:5], names[5:])
    prepared("dvs128_gesture", root, folder / "prepared")
    return folder / "prepared"


@pytest.mark.parametrize("T_train", [2, 0] if THOROUGH else [2])
def test_dvs128_gesture_is_learnt(gestures, T_train, tmp_path):
    """Trains with random temporal delete, in a thorough run also without it. Guessing reaches 1/3."""
    shrunk = ("--model.T", "3", "--data.T_train", str(T_train), "--batch_size", "5", "--epochs", "5", "--lr", "0.05")
    result = trained("dvs128_gesture/sew_add.yaml", gestures, tmp_path / "run", *shrunk)
    assert result["best_test_accuracy"] > 0.8, result


def test_samples_are_drawn(gestures, tmp_path):
    """One row per sequence, or images side by side; invalid options are errors."""
    config = str(CONFIGS / "dvs128_gesture/sew_add.yaml")
    words = ["--data.root", str(gestures), "--model.T", "3", "--T_train", "2", "--samples", "2"]
    assert main(["data", "show", config, "--output", str(tmp_path / "events.png"), "--test", *words]) == 0
    digits = str(CONFIGS / "digits.yaml")
    assert main(["data", "show", digits, "--output", str(tmp_path / "digits.png")]) == 0
    for name in ("events.png", "digits.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(["data", "show", digits, "--output", str(tmp_path / "none.png"), "--samples", "0"]) == 1
    assert main(["data", "show", digits, "--output", str(tmp_path / "no" / "folder.png")]) == 1


def test_cifar10_dvs_is_learnt(tmp_path):
    """Three of the ten classes have more than one recording. The 7B-Net stands for the wide one, which is ten times the
    work."""
    recordings = {}
    for label, name in enumerate(CLASSES):
        images = images_of([label], 20 if label < len(KINDS) else 1)[0]
        events = [record(image, KINDS[label % len(KINDS)], seed=i) for i, image in enumerate(images)]
        recordings[name] = [aedat2(e.tolist()) for e in events]
    prepared("cifar10_dvs", cifar10_dvs_folder(tmp_path / "cifar", recordings), tmp_path / "prepared")
    shrunk = ("--model.name", "sew_7b_net", "--model.T", "2", "--batch_size", "6", "--epochs", "2", "--lr", "0.05")
    shrunk += ("--zero_init_residual", "true")
    result = trained("cifar10_dvs/sew_add_T4.yaml", tmp_path / "prepared", tmp_path / "run", *shrunk)
    assert result["best_test_accuracy"] > 0.8, result
