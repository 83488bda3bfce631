"""docs/scaling.md: its script makes its tables, its arithmetic is right, and its benchmark runs."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import scaling as benchmark
from benchmarks.common import read_rows
from docs import scaling
from sewsnn.ops.load import NATIVE_ERROR

PAGE = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_tables_are_made():
    assert scaling.filled(PAGE) == PAGE, f"docs/scaling.md is not up to date: {scaling.COMMAND}"


def test_the_example_is_the_tables():
    """The parts of the calculation that the text contains are also right."""
    first, second = scaling.buckets(11_689_512, 4)
    assert first + second == 46_758_048 and first == 25 * 2**20
    inside = 2 * 7 / 8 * first / 450e9 + 14 * 3e-6
    outside = 2 * 7 / 8 * first / 8 / 50e9 + 6 * 10e-6
    assert scaling.hierarchical(64, first) == pytest.approx(inside + outside)
    text = re.search(r"For example.*?\n\n", PAGE, re.DOTALL)[0]
    for seconds in (2 * 7 / 8 * first / 450e9, 14 * 3e-6, 2 * 7 / 8 * first / 8 / 50e9, 6 * 10e-6):
        assert f"{1e3 * seconds:.3f} ms" in text
    assert f"together {1e3 * (inside + outside):.2f} ms" in text


def test_it_is_sane():
    """Inside one node both ways of exchange agree; more GPUs take longer; overlap never hurts."""
    assert scaling.hierarchical(8, 1e9) == pytest.approx(scaling.ring(8, 1e9))
    assert scaling.net(18).parameters == 11_689_512 and len(scaling.net(50).norms) == 53
    for depth in scaling.DEPTHS:
        network = scaling.net(depth)
        for width in (2, 4):
            parts = scaling.buckets(network.parameters, width)
            assert sum(parts) == network.parameters * width
            assert len(parts) == len(scaling.buckets(network.parameters, 4))  # a hook compresses what is in each
            found = [scaling.efficiency(network, gpus, width) for gpus in scaling.GPUS]
            assert found == sorted(found, reverse=True) and all(0 < none <= hidden < 1 for none, hidden in found)


@pytest.mark.skipif(NATIVE_ERROR is not None, reason="without the compiled library")
def test_benchmark(tmp_path, capfd, monkeypatch):
    """Runs with one and two processes; every row is complete."""
    monkeypatch.setattr(sys, "argv", ["scaling", "--quick", "--json", str(tmp_path / "rows.jsonl")])
    monkeypatch.delenv("RANK", raising=False)
    benchmark.main()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["processes"] for row in rows] == [1, 2] and len(capfd.readouterr().out.splitlines()) == 3
    for row in rows:
        assert row["step_p20_ms"] <= row["step_p50_ms"] <= row["step_p80_ms"] and row["images_per_s"] > 0
        assert row["gradient_bytes"] == 4 * sum(
            p.numel() for p in benchmark.network(benchmark.parse(["--quick"])).parameters()
        )
        assert {"device", "torch", "commit", "csrc", "load", "threads"} <= row.keys() and row["threads"] == 1
    assert rows[0]["hidden"] is None and rows[1]["hidden"] is not None


@pytest.mark.parametrize("words", [["--batch", "0"], ["--processes", "0"], ["--repeats", "1"]])
def test_bad_arguments(words, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse(words)
    assert "must be at least 1" in capsys.readouterr().err
