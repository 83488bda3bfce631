"""Starts training runs as users do, each in a separate process."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from sewsnn.train import checkpoint

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "digits.yaml"
SMALL = ["--blocks", "[1, 1]", "--widths", "[8, 16]", "--epochs", "3", "--checkpoint_steps", "4", "--threads", "1"]
MEASURED = ("train_seconds", "train_images_per_second", "data_wait", "peak_memory_mib")  # differ from run to run
# Python puts the working directory before the installed package: not the checkout's root.
PROCESS = {"cwd": Path(__file__).parent, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}


def command(output, *more):
    return [sys.executable, "-m", "sewsnn.cli", "train", str(CONFIG), "--output", str(output), *SMALL, *more]


def run(output, *more):
    return subprocess.run(command(output, *more), capture_output=True, text=True, **PROCESS)


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def assert_same_end(a, b, epochs=3):
    """Asserts equal weights, moving averages, optimizer states and metrics (except measured times), bit for bit."""
    x, y = checkpoint.load(a / checkpoint.NAME), checkpoint.load(b / checkpoint.NAME)
    assert x["epoch"] == y["epoch"] == epochs
    assert x["model"].keys() == y["model"].keys() and (x["average"] is None) == (y["average"] is None)
    for part in ("model", "average"):
        for key, value in (x[part] or {}).items():
            assert torch.equal(value, y[part][key]), (part, key)
    for i, state in x["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], y["optimizer"]["state"][i]["momentum_buffer"])
    for r, s in zip(rows(a), rows(b), strict=True):
        assert {k: v for k, v in r.items() if k not in MEASURED} == {k: v for k, v in s.items() if k not in MEASURED}


def wait_for(process, condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too early: " + process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.005)


def in_mid_epoch(folder, epoch):
    """Returns whether the folder's checkpoint is from the middle of that epoch or a later one."""
    path = folder / checkpoint.NAME
    if not path.exists():
        return False
    saved = checkpoint.load(path)
    return saved["epoch"] >= epoch and saved["step"] > 0
