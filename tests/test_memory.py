"""The memory of large CPU results is kept for later results, and two live tensors never share it."""

import itertools
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from cases import current

from sewsnn import functional

can_keep = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11) or not sys.platform.startswith("linux"),
    reason="torch 2.10 cannot be given memory; the size of a process is read from /proc",
)
HERE = Path(__file__).parent  # not the checkout's root, whose sewsnn/ Python would import
MEGABYTE = 1 << 18  # floats


def spikes(megabytes, value=2.0, T=2):
    """Returns a result of this size with spikes everywhere or nowhere."""
    x = torch.full((T, megabytes * MEGABYTE // T), value)
    return functional.if_multistep(x, backend="native")[0]


def test_living_results_do_not_share_memory():
    choose = random.Random(0)
    living = []
    for _ in range(120):
        if living and choose.random() < 0.5:
            living.pop(choose.randrange(len(living)))
        else:
            value = choose.choice([0.0, 2.0])
            living.append((spikes(choose.choice([3, 4, 5, 7, 8, 16]), value), float(value > 1)))
        ranges = sorted((s.data_ptr(), s.data_ptr() + s.nbytes) for s, _ in living)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ranges))
    for s, expected in living:
        assert (s == expected).all()


def test_a_view_keeps_the_memory():
    s = spikes(8)
    view = s[1, -5:]
    del s
    for _ in range(3):
        spikes(8, value=0.0)
    assert view.tolist() == [1.0] * 5


def test_results_of_any_thread():
    def work(value, wrong):
        for _ in range(10):
            s = spikes(6, value)
            if not (s == float(value > 1)).all():
                wrong.append(value)

    wrong: list[float] = []
    threads = [threading.Thread(target=work, args=(value, wrong)) for value in (0.0, 2.0, 0.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_outlive_the_graph():
    x = current((4, 400_000)).requires_grad_()
    functional.lif_multistep(x, backend="native")[0].sum().backward()
    before = x.grad.clone()
    for _ in range(3):
        other = current((4, 400_000), seed=1).requires_grad_()
        functional.lif_multistep(other, backend="native")[0].sum().backward()
        del other
    assert torch.equal(x.grad, before)


_MEASURE = """
import torch
from sewsnn import functional
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
x = torch.zeros(50 << 18).expand(2, 50 << 18)
def run():
    return functional.if_multistep(x, backend="native")[0]  # and a final v of 50 MB, which dies at once
run()
before = resident()
results = [run() for _ in range(3)]  # of 100 MB each
pointers = {s.data_ptr() for s in results}
held = resident() - before
del results
print(held, resident() - before, run().data_ptr() in pointers)
"""


@can_keep
@pytest.mark.parametrize(
    "keep, held, left", [("0", 300, 0), ("160", 200, -50), ("1024", 200, 200)], ids=["nothing", "one", "all"]
)
def test_how_much_is_kept(keep, held, left):
    """At most SEWSNN_CPU_KEEP_MB megabytes are kept, and later results reuse them.

    ``held`` and ``left`` are megabytes beyond what the first call left: nothing, or its s of 100 MB and v of 50 MB, the
    older of which makes room for a result in the second case.
    """
    environment = {**os.environ, "SEWSNN_CPU_KEEP_MB": keep}
    done = subprocess.run([sys.executable, "-c", _MEASURE], env=environment, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *measured, used_again = done.stdout.split()
    assert [float(m) for m in measured] == pytest.approx([held, left], abs=12)
    assert used_again == "True" or keep == "0"


@can_keep
def test_a_wrong_limit_is_an_error():
    code = "import torch\nfrom sewsnn import functional\nfunctional.if_multistep(torch.zeros(2, 1 << 20))"
    environment = {**os.environ, "SEWSNN_CPU_KEEP_MB": "much"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=HERE, capture_output=True, text=True)
    assert done.returncode != 0 and "SEWSNN_CPU_KEEP_MB must be a number of megabytes" in done.stderr
