"""Worker processes end when an epoch is left in its middle for any reason."""

import subprocess
import sys

import pytest
import torch

from sewsnn.data.loading import LoadedSource
from sewsnn.data.source import Options
from sewsnn.errors import DataError

SCRIPT = """
import gc, os, signal, sys, time
import multiprocessing
import torch
from sewsnn.data.loading import LoadedSource
from sewsnn.data.source import Options

class Numbers:
    def __len__(self):
        return 40
    def load(self, index, seed):
        return torch.full((1, 2, 2), float(index)), index

class Cycle:
    pass

def leave(what):
    cycle = Cycle()
    cycle.itself, cycle.what = cycle, what

def begun():
    options = Options(batch_size=2, seed=0, workers=2)
    batches = LoadedSource(Numbers(), Numbers(), 40, 1, False, options).train_batches(0)
    next(batches)
    return batches

leave(begun())
start = time.monotonic()
gc.collect()
print("collected", time.monotonic() - start < 12, multiprocessing.active_children())
forks = []  # the second worker takes a while to start
os.register_at_fork(before=lambda: forks.append(1), after_in_child=lambda: time.sleep(2 * (len(forks) == 2)))
batches = begun()
for worker in multiprocessing.active_children():
    os.system(f"kill -TERM {worker.pid}")  # another process, as a batch system's
print("loaded", 1 + sum(1 for _ in batches))
batches = begun()
leave(batches)
gc.disable()
print("left")
"""


def test_workers_end_with_what_they_load_for():
    """Workers end with garbage collection or with the process, but not by a SIGTERM to the training process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["collected True []", "loaded 20", "left"], done.stderr


class Disk:
    """A hundred files, some damaged; from one file on the disk is gone."""

    def __init__(self, damaged=(), gone=100):
        self.damaged, self.gone = damaged, gone

    def __len__(self):
        return 100

    def load(self, index, seed):
        if index in self.damaged or index >= self.gone:
            raise DataError(f"cannot read {index}", str(index))
        return torch.full((1,), float(index)), index


def test_damage_is_skipped_a_lost_disk_is_not():
    """Training continues past damaged files, the test counts them, and a lost disk does not shrink the test set."""
    options = Options(batch_size=10, seed=0, on_corrupt="skip")

    def source(disk):
        return LoadedSource(disk, disk, 100, 1, False, options)

    damaged = source(Disk(damaged=range(40, 48)))
    assert sum(len(y) for _, y in damaged.test_batches()) == 92 and len(damaged.corrupt) == 8
    assert sum(len(y) for _, y in damaged.train_batches(0)) == 100
    for batches in (source(Disk(gone=30)).test_batches(), source(Disk(gone=30)).train_batches(0)):
        with pytest.raises(
            DataError, match=r"1[06] samples in a row could not be read, so loading stops; the last error: cannot read"
        ):
            list(batches)
