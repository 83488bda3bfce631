"""The predicted speed of the CUDA kernels: the model, its inputs; old numbers are called old, missing ones an error."""

import pytest

from benchmarks import machine_code, tables
from benchmarks.common import ROOT, read_rows
from benchmarks.gpu import predicted
from benchmarks.machine_code import counts, executed, hot, pages
from benchmarks.machine_code.disassembly import instructions
from benchmarks.machine_code.model import DEVICES, device_of, predict
from benchmarks.machine_code.traffic import waits, work

SASS = 0.95  # SASS per PTX instruction in the calculations by hand below
BACKWARD = {"kernel": "backward_kernel", "Storage": "half", "N": 4, "K": 16, "ahead": 20}
REDUCE = {"kernel": "bn_reduce_kernel", "Storage": "half", "N": 4, "K": 4, "ahead": 8, "Shortcut": False}
# (kernel, T, PTX instructions, stall, blocks, bursts, KB in flight, TB/s issue, TB/s latency, H100, H200), by hand
BY_HAND = [
    (BACKWARD, 16, 2358, 1.9, 2, 4, 40, 4.1, 2.5, "82% latency", "57% latency"),
    (BACKWARD, 8, 1622, 1.9, 2, 3, 16, 3.0, 1.7, "57% latency", "40% latency"),
    (BACKWARD | {"K": 4, "N": 8, "ahead": 10}, 4, 1082, 1.4, 4, 1, 64, 4.4, 8.4, "100% memory", "100% memory"),
    (REDUCE, 4, 681, 2.4, 4, 1, 32, 2.3, 2.7, "78% issue", "55% issue"),
    (REDUCE | {"K": 16, "N": 2, "ahead": 20}, 16, 1579, 2.8, 2, 4, 20, 2.0, 0.8, "28% latency", "19% latency"),
    (REDUCE | {"kernel": "bn_apply_kernel"}, 4, 733, 2.3, 4, 1, 32, 3.3, 4.0, "100% memory", "76% issue"),
    (
        {"kernel": "bn_forward_kernel", "Storage": "half", "N": 8, "Shortcut": True},
        *(4, 748, 2.3, 4, 1, 64, 6.4, 7.9, "100% memory", "100% memory"),
    ),
    (
        {"kernel": "bn_statistics_kernel", "Storage": "half", "N": 8},
        *(4, 380, 2.6, 7, 1, 56, 4.2, 6.1, "100% memory", "98% issue"),
    ),
]


@pytest.mark.parametrize("row, T, ptx, stall, blocks, bursts, kilobytes, issue, latency, h100, h200", BY_HAND)
def test_model(row, T, ptx, stall, blocks, bursts, kilobytes, issue, latency, h100, h200):
    """The calculations by hand used stall counts before rounding: half a digit is 2 % of the time."""
    done = work(row, T, SASS * ptx)
    limits = predict(done, blocks, stall)
    assert done.bursts == bursts and round(limits.flying / 1024) == kilobytes
    assert limits.issue / 1e12 == pytest.approx(issue, abs=0.051)
    assert limits.latency / 1e12 == pytest.approx(latency, abs=0.05, rel=0.02)
    for device, expected in zip(DEVICES.values(), (h100, h200), strict=True):
        share, limit = expected.split()
        assert abs(100 * limits.share(device) - float(share.rstrip("%"))) <= 1.01, limits.share(device)
        assert limits.limit(device) == limit or limits.share(device) > 0.97


def test_bytes_in_flight_that_memory_needs():
    limits = predict(work(BACKWARD, 16, 2240), 2, 1.9)
    assert round(limits.needed(DEVICES["H100"]) / 1024, 1) == 11.6  # two of three accesses are loads
    assert round(predict(work(REDUCE, 4, 647), 4, 2.4).needed(DEVICES["H100"]) / 1024, 1) == 17.3


def test_loads_that_are_requested_earlier_wait_less():
    row = BACKWARD | {"K": 8, "ahead": 16}
    assert (
        waits(row, 8) == (1, 16) and waits(row | {"ahead": 12}, 8) == (2, 12) and waits(row | {"ahead": 8}, 8)[0] == 3
    )
    assert waits(BACKWARD | {"ahead": 32}, 5) == (1, 10) and waits(BACKWARD | {"ahead": 32}, 32)[0] == 2
    now, hidden = (predict(work(REDUCE, 4, 647, hidden=h), 4, 2.4).latency for h in (0, 1))
    own = 647 * 2.4 / 1.755e9
    assert hidden / now == pytest.approx((700e-9 + own) / own)  # only its own instructions remain


def test_stall_counts_are_read():
    """Three instructions with 4, 2 and 15 cycles, and a NOP that does not count."""
    lines = [("MOV R1, c[0x0][0x28]", 4), ("@P0 IMAD.WIDE R2, R3, R4, R5", 2), ("EXIT", 15), ("NOP", 0)]
    text = "\t\tFunction : kernel\n"
    for i, (code, stall) in enumerate(lines):
        text += f"        /*{16 * i:04x}*/   {code} ;   /* 0x00000a0000017a02 */\n"
        text += f"                                 /* 0x{stall << 41 | 0x3F << 52 | 0xFF:016x} */\n"
    row = instructions(text)["kernel"]
    assert row["stall"] == 7.0 and row["instructions"] == 3


def test_sass_of_executed_ptx():
    """100 ordinary instructions and ten divisions of five; the code has 0.8 ordinary SASS instructions per PTX one."""
    row = {"instructions": 110, "start": 50, "written_out": {"div.approx.f32": 10}}
    row |= {"static": 1020, "static_written_out": {"div.approx.f32": 20}}
    assert counts.executed_sass(row, {"instructions": 900}) == pytest.approx((0.8 * 100 + 50, 40))


def test_counts_of_a_row_of_the_walk():
    rows = [{"kernel": "bn_x", "rows": n, "per_thread": 7 + 100 * n, "per_row": 100, "prologue": 7} for n in (1, 2, 6)]
    for row in rows:
        row["opcodes"] = {"add": 60 * row["rows"], "div.rn.f32": 1 + 2 * row["rows"]}
    unit = executed.per_unit(rows)
    assert unit["instructions"] == 100 and unit["start"] == 7 and unit["opcodes"] == {"add": 60, "div.rn.f32": 2}
    pool = {"kernel": "pool_x<float, K=4, N=4>", "rows": None, "per_thread": 320, "per_z": 10, "opcodes": {"add": 320}}
    assert executed.per_unit([pool]) == {"rows": 2, "instructions": 160, "start": 0, "opcodes": {"add": 160}}


def test_instructions_of_ptx():
    text = (
        ".visible .entry name(\n)\n{\n\t.reg .b32 %r<3>;\n\n\tld.param.u64 \t%rd1, [a];\n$L__BB0_1:\n\t@%p1 bra \t$L;\n"
    )
    text += "\tdiv.rn.f32 \t%f1, %f2, %f3;\n\tret;\n\n}\n"
    assert executed.opcodes(text) == {"name": {"ld.param.u64": 1, "bra": 1, "div.rn.f32": 1, "ret": 1}}


@pytest.fixture(scope="module")
def code():
    return read_rows(machine_code.RESULTS)


def test_the_instance_that_serves_a_number_of_time_steps(code):
    backward = next(h for h in hot.HOT if h.name == "backward")
    rows = [r | {"stall": 1.0} for r in code]
    four, sixteen = (hot.serving(rows, backward, "bfloat16", T) for T in (4, 16))
    assert (four["K"], four["N"]) == (4, 8) and (sixteen["K"], sixteen["N"]) == (16, 4)
    eight = sixteen | {"K": 8, "N": 8}
    assert hot.serving([*rows, eight], backward, "bfloat16", 8)["K"] == 8
    assert hot.serving([*rows, eight], backward, "bfloat16", 5)["K"] == 8
    assert hot.serving([*rows, eight], backward, "bfloat16", 16)["K"] == 16
    assert hot.serving(rows, backward, "bfloat16", 500)["K"] == 16
    usual = [four | {hot.USUAL: flag} for flag in (False, True, False)]
    assert hot.serving(usual, backward, "bfloat16", 4)[hot.USUAL]
    with pytest.raises(SystemExit, match="no machine code of backward_kernel for quarter"):
        hot.serving(rows, backward, "quarter", 4)


def test_every_hot_kernel_has_a_prediction():
    found = hot.predictions()
    assert len(found) == sum(len(h.steps) for h in hot.HOT) * len(hot.STORAGES)
    for p in found:
        assert 0 < p.limits.share(DEVICES["H200"]) <= p.limits.share(DEVICES["H100"]) <= 1, p.hot
        assert 0.6 < counts.factor(p.code["instructions"], *_static(p)) < 1.2, (p.hot.name, p.storage)
    lines = hot.text_table(found).splitlines()
    assert len(lines) == 1 + len(found) and "H100" in lines[0] and "backward_kernel<" in "\n".join(lines)


def _static(p):
    count = hot.count_of(counts.read_counts(), machine_code.title(p.code), 1 if "statistics" in p.hot.name else p.T)
    return count["static"], count["static_written_out"]


def test_old_numbers_are_called_old(code):
    current = {
        key: row | {"sources": machine_code.sources_of({"kernel": key[0].split("<")[0]})}
        for key, row in counts.read_counts().items()
    }
    rows = [row | {"sources": machine_code.sources_of(row)} for row in code]
    new = hot.predictions(rows, current)
    assert not any(p.old for p in new)
    assert "old" not in hot.text_table(new) and "Old" not in pages.details(new) + pages.shares(new)
    stale = current | {k: r | {"sources": "0"} for k, r in current.items() if k[0].startswith("backward_kernel")}
    found = hot.predictions(rows, stale)
    assert {p.hot.name for p in found if p.old == "instruction count"} == {"backward"}
    assert "old instruction count" in hot.text_table(found) and "Old: the code has changed" in pages.details(found)
    assert "(old)" in pages.details(found) and counts.COMMAND in pages.shares(found)
    found = hot.predictions([r | {"sources": "0"} if r["kernel"].startswith("bn_") else r for r in rows], current)
    assert {p.hot.name.split()[0] for p in found if p.old == "machine code"} == {"bn"}


def test_missing_numbers_are_an_error(code):
    known = counts.read_counts()
    gone = {k: r for k, r in known.items() if not (k[0].startswith("bn_apply_kernel<bfloat16") and k[1] == 8)}
    with pytest.raises(SystemExit, match=r"no executed instructions of bn_apply_kernel<bfloat16.* with T = 8"):
        hot.predictions(code, gone)
    without = [{k: v for k, v in row.items() if k != "stall"} for row in code]
    with pytest.raises(SystemExit, match="no stall counts"):
        hot.predictions(without, known)


@pytest.mark.parametrize("page", ["docs/kernels.md", "docs/gpu.md"])
def test_pages_are_up_to_date(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.filled(page, text) == text, f"{page} is not up to date: {tables.COMMAND}"
    assert "*Predicted, not measured.*" in text


def test_names_of_devices():
    assert device_of("NVIDIA H100 80GB HBM3") is DEVICES["H100"] and device_of("NVIDIA H200") is DEVICES["H200"]
    for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "AMD EPYC 9V74"):
        assert device_of(name) is None, name


def test_predicted_beside_measured(monkeypatch, capsys):
    name = "NVIDIA H100 80GB HBM3"
    about = {"provider": "native", "place": "stage1", "device": name, "csrc": "c"}
    row = {"case": "block_reduce", "dtype": "bfloat16", "T": 4} | about
    share = predicted.predicted_share(row, name)
    found = next(p for p in hot.predictions() if (p.hot.name, p.storage, p.T) == ("bn reduce", "bfloat16", 4))
    assert share == round(found.limits.share(DEVICES["H100"]), 3) and 0 < share <= 1
    assert predicted.predicted_share(row, "NVIDIA H200") < share
    long = row | {"case": "LIF_backward", "T": 500}
    assert predicted.predicted_share(long, name) == predicted.predicted_share(long | {"T": 16}, name) is not None
    for other in (
        row | {"case": "PLIF_backward"},
        row | {"provider": "compile"},
        {"case": "copy", "provider": "torch"},
    ):
        assert predicted.predicted_share(other, name) is None
    assert predicted.predicted_share(row, "AMD EPYC") is None
    rows = [
        row | {"share_of_copy": 0.1, "predicted_share": 0.2},  # measured again later
        long | {"share_of_copy": 0.9, "predicted_share": None},
        row | {"share_of_copy": 0.55, "predicted_share": share},
        row | {"share_of_copy": 0.3, "csrc": "other"},
        row | {"share_of_copy": 0.3, "device": "other"},
        {"stage": "smoke", "device": name, "csrc": "c"},
    ]
    head, first, second = predicted.comparison(rows, name, "c").splitlines()
    assert head.split() == ["case", "dtype", "shape", "predicted", "measured", "limit"]
    assert first.split()[:5] == ["block_reduce", "bfloat16", "stage1", f"{share:.0%}", "55%"]
    assert second.split() == ["LIF_backward", "bfloat16", "stage1", "-", "90%"]
    assert predicted.comparison(rows, "nothing", "c") == ""

    def fails():
        raise SystemExit("no executed instructions of x")

    predicted.known.cache_clear()
    monkeypatch.setattr(predicted, "predictions", fails)
    assert predicted.predicted_share(row, name) is None
    assert "no predictions: no executed instructions of x" in capsys.readouterr().out
    predicted.known.cache_clear()
