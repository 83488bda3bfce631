"""Worker processes end: whoever leaves an epoch in its middle, however that is noticed."""

import subprocess
import sys

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
print("collected", time.monotonic() - start < 4, multiprocessing.active_children())
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
    """Collected as garbage, or at the end of the process; and not by a SIGTERM that is for the training process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["collected True []", "loaded 20", "left"], done.stderr
