"""Counts the bytes that the stem's CUDA kernels move: bf16, channels_last, 64 channels, T = 4."""

import pool_host
import pytest
import torch
from cases import current
from test_bytes import moved
from test_pool_kernels import stem

T, C = 4, 64
NUMBERS = ("mean", "var", "weight", "bias", "sums", "partials")  # per channel, and per block and channel
# Rows of z -> number of strips; each strip has at least 8 rows of windows.
SIZES = ((16, 1), (32, 2), (112, 7))


def accesses(report, kind):
    """Returns {bytes of an access: count} by buffer, without the buffers per channel."""
    return {name: dict(sizes) for name, sizes in report[kind].items() if sizes and name not in NUMBERS}


@pytest.mark.parametrize("size, strips", SIZES)
def test_forward(size, strips):
    """It reads z once in packs of 16 bytes (plus one row above each strip), and writes the pooled spikes once."""
    pool_host.reports.clear()
    stem((1, C, size, size), torch.bfloat16).forward("cuda")
    (report,) = pool_host.reports
    rows = size + strips - 1
    assert accesses(report, "loads") == {"z": {16: rows * size * C // 8}}
    assert accesses(report, "stores") == {"out": {16: T * (size // 2) ** 2 * C // 8}}
    # Each block reads the numbers of its own channels.
    total = moved(report)
    assert sum(total[name] for name in NUMBERS if name in total) == 4 * 4 * C * strips


@pytest.mark.parametrize("usual", (True, False))
@pytest.mark.parametrize("size, strips", SIZES[:2])
def test_backward(size, strips, usual):
    """By each pass. z: twice, a row of windows apart, and three rows more per strip. grad_z once. grad_out: twice, by
    the thread of the window and by the one to its left; one row more per strip. With unusual settings once for each
    neuron that may get it, which is up to nine times and from the cache. Packs of 8 bytes: four channels a thread."""
    pool_host.reports.clear()
    case = stem((1, C, size, size), torch.bfloat16, detach_reset=usual)
    grad_out = current(case.out_shape, torch.bfloat16)
    sums, _ = case.reduce("cuda", grad_out)
    case.apply("cuda", grad_out, sums, 1000)
    out = size // 2
    positions = (
        (out + strips - 1) * (2 * out - 1) if usual else (3 * out - 1) ** 2
    )  # the latter are all inside the image
    loads = {"z": {8: (2 * size + 3 * (strips - 1)) * size * C // 4}, "grad_out": {8: T * positions * C // 4}}
    reduced, applied = pool_host.reports
    assert accesses(reduced, "loads") == accesses(applied, "loads") == loads
    assert accesses(reduced, "stores") == {}
    assert accesses(applied, "stores") == {"grad_z": {8: size * size * C // 4}}
    # One double per block and channel is written and read for the sums.
    assert moved(reduced)["partials"] == 2 * 2 * 8 * C * strips
