"""The host device detects faults: each kernel in samples.cu has one."""

import host
import numpy as np
import pytest

I = np.arange(64)  # noqa: E741


def sample(name, rows=1, **settings):
    x = host.Guarded(1, 64, host.torch.float32)
    x.tensor[0] = host.torch.arange(64.0)
    out = host.Guarded(rows, 64, host.torch.float32)
    report = host.module().sample(name, x.tensor[0].numpy(), out.tensor.numpy(), **settings)
    return out.tensor.numpy(), report


def test_a_faultless_kernel():
    out, report = sample("copy")
    assert (out[0] == I).all() and report["loads"]["in"] == report["stores"]["out"] == {4: 64}


@pytest.mark.parametrize(
    "name, error",
    [
        ("read_before", r"a read of 4 bytes outside all buffers; in has 256 bytes, this is at -4.*thread 0\)"),
        ("read_after", r"a read of 4 bytes outside all buffers.*in has 256 bytes, this is at 256.*thread 63\)"),
        ("write_after", r"a write of 4 bytes outside all buffers.*thread 63\)"),
        ("half_outside", r"a read of 16 bytes outside all buffers"),
        ("misaligned", r"an access of 16 bytes to in that is not aligned to them"),
        ("write_input", r"a write to in, which is to be read only"),
        ("write_twice", r"a second write to byte 0 of out .*thread 1\)"),
        ("read_output", r"a read of out where nothing has been written"),
        ("missed_barrier", r"__syncthreads that not every thread of the block reaches .*missed_barrier"),
        ("missed_shuffle", r"a warp operation that not every lane of its mask reaches"),
        ("foreign_mask", r"a warp operation whose mask lacks the calling lane .*thread 4\)"),
        ("no_blocks", "invalid configuration"),
        ("many_threads", "invalid configuration"),
    ],
)
def test_faults(name, error):
    with pytest.raises(RuntimeError, match=error):
        sample(name)
    assert (sample("copy")[0][0] == I).all(), "an error leaves nothing behind"


def test_what_is_not_written_is_reported():
    with pytest.raises(RuntimeError, match="byte 256 of out was never written"):
        sample("copy", rows=2)


def test_a_race_shows_in_another_order():
    results = [sample("race", schedule=schedule)[0] for schedule in (0, 1)]
    assert not np.array_equal(*results, equal_nan=True)


def test_shared_memory_begins_as_rubbish():
    out, _ = sample("stale_shared", rows=2)
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("schedule", (0, 1, 5))
def test_operations(schedule):
    out, _ = sample("operations", rows=11, schedule=schedule)
    warp = I // 32 * 32
    expected = [
        63 - I,
        warp + 3,
        I // 8 * 8 + 1,
        np.where(I % 32 < 2, I, I - 2),
        np.where(I % 32 > 29, I, I + 2),
        np.where(I % 4 > 1, I, I + 2),
        I ^ 5,
        np.full(64, 11),
        I >= 32,
        I < 32,
        np.where(I % 2, I ^ 2, -1),
    ]
    for row, (got, want) in enumerate(zip(out, expected, strict=True)):
        assert (got == want).all(), row


def test_guards_show_what_is_written_beside_a_buffer():
    out = host.Guarded(2, 5, host.torch.float32, offset=1)
    out.check("out")
    out.raw[out.end] = 0
    with pytest.raises(AssertionError, match="wrote beside out"):
        out.check("out")
