"""The machine that executes PTX, operation by operation."""

import numpy as np
import pytest
import torch
from machine import Machine
from nvcc import Listing
from parse import PtxError
from test_shim import sample
from written import execute

I = np.arange(64, dtype=np.uint32)  # noqa: E741


def edge_cases(count):
    """Floats of every size, ties between two numbers of 16 bits, subnormal numbers, infinities and NaN."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, count, dtype=np.uint32)
    bits[::4] &= 0xFFFF8000  # ties of bfloat16
    bits[1::4] = (bits[1::4] & 0x87FFF000) + 0x33000000  # sizes of half, and its ties
    bits[:10] = [
        0,
        1 << 31,
        0x7F800000,
        0xFF800000,
        0x7FC00001,
        0x477FEFFF,
        0x477FF000,
        0x33000000,
        0x33000001,
        0x7F7FFFFF,
    ]
    return bits.view(np.float32)


@pytest.mark.parametrize("name, same", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_pairs_are_rounded_to_nearest_even(tmp_path, name, same):
    """The conversion of two numbers, compared with torch. NaN becomes 0x7fff."""
    x = edge_cases(64 * 150)
    expected = torch.from_numpy(x).to(same).view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    expected[np.isnan(x)] = 0x7FFF
    for part in range(0, len(x), 64):
        got = execute(tmp_path, f"cvt.rn.{name}x2.f32 %r9, %r2, 0f3F800000;", x[part : part + 64])
        assert (got >> 16 == expected[part : part + 64]).all()
        assert (got & 0xFFFF == (0x3F80 if name == "bf16" else 0x3C00)).all()


def test_half_to_float(tmp_path):
    bits = np.arange(0, 2**16, 41, dtype=np.uint32)[: 64 * 24]
    for part in bits.reshape(-1, 64):
        got = execute(tmp_path, "cvt.u16.u32 %rs1, %r2; cvt.f32.f16 %r9, %rs1;", part).view(np.float32)
        np.testing.assert_array_equal(got, part.astype(np.uint16).view(np.float16).astype(np.float32))


def test_approximate_division(tmp_path):
    """Exact, except that divisors above 2^126 give 0 (CUDA's page on __fdividef)."""
    x = np.linspace(-3, 5, 64, dtype=np.float32)
    got = execute(tmp_path, "div.approx.f32 %r9, 0f3F800000, %r2;", x).view(np.float32)
    np.testing.assert_array_equal(got, np.float32(1) / x)
    got = execute(tmp_path, "div.approx.f32 %r9, %r2, 0f7F000000;", x).view(np.float32)
    assert (got == 0).all()


def test_rounding_down(tmp_path):
    x = edge_cases(64)
    got = execute(
        tmp_path, "fma.rm.f32 %r9, %r2, 0f3F800000, 0f4B400001;", np.abs(np.linspace(-9, 9, 64, dtype=np.float32))
    )
    assert ((got - 0x4B400001) == np.floor(np.abs(np.linspace(-9, 9, 64, dtype=np.float32))).astype(np.uint32)).all()
    got = execute(tmp_path, "cvt.sat.f32.f32 %r9, %r2;", x).view(np.float32)
    np.testing.assert_array_equal(got, np.nan_to_num(np.clip(x, 0, 1), nan=0))


@pytest.mark.parametrize(
    "body, expected",
    [
        ("bfi.b32 %r9, %r1, 0xFF0000FF, 8, 16;", 0xFF0000FF | I << 8),
        ("prmt.b32 %r9, %r1, 0x80828384, 0x6F40;", I | 0x84 << 8 | 0xFF << 16 | 0x82 << 24),
        ("shl.b32 %r9, %r1, 33;", 0 * I),
        ("shr.s32 %r9, -8, %r1;", np.where(I < 32, -8 >> np.minimum(I, 31).astype(np.int32), -1).astype(np.uint32)),
        ("sub.s32 %r3, %r1, 20; abs.s32 %r9, %r3;", np.abs(I.astype(int) - 20)),
        (
            "sub.s32 %r3, 7, %r1; div.s32 %r9, %r3, 4;",
            np.trunc((7 - I.astype(int)) / 4).astype(np.int32).view(np.uint32),
        ),
        ("mul.hi.u32 %r9, %r1, 0x80000000;", I // 2),
        ("mad.lo.s32 %r9, %r1, %r1, 5;", I * I + 5),
        ("setp.lt.u32 %p1, %r1, 9; selp.b32 %r9, 1, 2, %p1;", np.where(I < 9, 1, 2)),
        ("mov.u32 %r9, 4; setp.lt.u32 %p1, %r1, 9; @!%p1 mov.u32 %r9, 6;", np.where(I < 9, 4, 6)),
        ("mov.b64 %rd9, {%r1, 7}; mov.b64 {%r8, %r7}, %rd9; shl.b32 %r8, %r8, 8; or.b32 %r9, %r8, %r7;", I << 8 | 7),
        ("shfl.sync.down.b32 %r9|%p1, %r1, 2, 0x1c1f, -1;", np.where(I % 4 > 1, I, I + 2)),
        ("shfl.sync.up.b32 %r9, %r1, 3, 0, -1;", np.where(I % 32 < 3, I, I - 3)),
        ("setp.lt.u32 %p1, %r1, 9; vote.sync.ballot.b32 %r9, %p1, -1;", np.where(I < 32, 0x1FF, 0)),
        ("mov.u32 %r9, %ntid.x; { .reg .b32 %r9; mov.u32 %r9, 3; }", 0 * I + 64),
        ("cvt.s64.s32 %rd9, -3; shr.u64 %rd9, %rd9, 40; cvt.u32.u64 %r9, %rd9;", 0 * I + 0xFFFFFF),
        ("cvt.rni.s32.f32 %r9, 0f40200000; fence.acq_rel.gpu; membar.gl; griddepcontrol.wait;", 0 * I + 2),
        (
            "mov.u32 %r9, 0; $L_a: add.u32 %r9, %r9, 2; setp.lt.u32 %p1, %r9, %r1; @%p1 bra $L_a;",
            np.maximum(2, I + I % 2),
        ),
    ],
)
def test_operations(tmp_path, body, expected):
    assert (execute(tmp_path, body) == expected).all()


def test_shared_memory_and_atomics(tmp_path):
    """64 threads count; the counter of atom.inc begins again after 9."""
    body = """
      mov.u32 %r3, memory;
      setp.ne.s32 %p1, %r1, 0;
      @%p1 bra $L_filled;
      st.shared.v2.b32 [%r3+8], {0, 0};
      $L_filled: bar.sync 0;
      atom.shared.add.u32 %r4, [%r3+8], 1;
      atom.shared.inc.u32 %r4, [%r3+12], 9;
      bar.sync 0;
      ld.shared.v2.u32 {%r5, %r6}, [memory+8];
      mad.lo.u32 %r9, %r5, 256, %r6;"""
    assert (execute(tmp_path, body) == 64 * 256 + 64 % 10).all()


@pytest.mark.parametrize(
    "body, error",
    [
        ("ld.shared.u32 %r9, [memory+256];", "outside of shared memory"),
        ("ld.shared.v2.u32 {%r9, %r8}, [memory+4];", "misaligned access to shared memory"),
        ("add.s64 %rd6, %rd4, 252; ld.global.b32 %r9, [%rd6];", "outside all buffers"),
        ("ld.global.nc.b32 %r9, [%rd5];", "nothing has been written"),
        ("st.global.b32 [%rd5], %r1; ld.global.nc.b32 %r9, [%rd5];", "as constant memory"),
        ("setp.eq.s32 %p1, %r1, 5; @%p1 bra $L_e; bar.sync 0; $L_e: mov.u32 %r9, 0;", "__syncthreads"),
        ("trap;", "trap"),
    ],
)
def test_faults(tmp_path, body, error):
    with pytest.raises(RuntimeError, match=error):
        execute(tmp_path, body)


@pytest.mark.parametrize(
    "body, error",
    [
        ("tanh.approx.f32 %r9, %r2;", "unknown operation tanh.approx.f32 in 'tanh.approx.f32 %r9, %r2'"),
        ("@%p1 lop3.b32 %r9, %r1, %r1, %r1, 1;", "unknown operation lop3.b32"),
        ("mov.u32 %r9, %smid.x;", "unknown special register %smid.x"),
        ("bra $L_nowhere;", "no label"),
        ("setp.lt.s32 %p1|%p2, %r1, 3;", "cannot read the operand"),
    ],
)
def test_what_is_unknown_is_an_error_that_names_it(tmp_path, body, error):
    with pytest.raises(PtxError, match=error.replace("|", r"\|").replace("$", r"\$")):
        execute(tmp_path, body)


def test_no_ptx_is_an_error():
    with Machine(Listing([])).run(), pytest.raises(PtxError, match="no PTX file has the kernel"):
        sample("copy")


def test_counts(machine):
    """Each of 64 threads of the copy executes each of its statements once."""
    with machine.run():
        sample("copy")
        (executed,) = machine.executed().values()
    assert executed.threads == 64 and executed.instructions == 64 * len(executed.kernel.statements)
    assert executed.by_opcode()["ret"] == 64 and "ld.global.nc" in executed.listing()
