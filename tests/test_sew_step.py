"""python -m benchmarks.sew_step: the rivals compute the same, the rows are complete, and --check can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import common, dating, tables
from benchmarks.sew_step import __main__ as main
from benchmarks.sew_step.judge import mark_best, too_bad
from benchmarks.sew_step.networks import MEMORY_FORMATS, Case, available

ROOT = Path(__file__).parent.parent
# SpikingJelly's network has only these widths.
MODEL = {"name": "sew_resnet", "blocks": [1, 1, 1, 1], "widths": [64, 128, 256, 512], "num_classes": 10}
PROVIDERS = [name for name in ("plain", "fused", "spikingjelly", "converted") if available(name)]


def sew_step(*words):
    command = [sys.executable, "-m", "benchmarks.sew_step", *map(str, words)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}  # other tests share the processor
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    chosen = ["--models", json.dumps(MODEL), "--batch", 2, "--size", 32, "--repeats", 2]
    done = sew_step(*chosen, "--providers", *PROVIDERS, "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = common.read_rows(file)
    assert [(r["provider"], r["memory_format"]) for r in rows] == [(p, m) for p in PROVIDERS for m in MEMORY_FORMATS]
    for row in rows:
        assert "error" not in row
        assert json.loads(row["case"]) == MODEL and (row["batch"], row["T"], row["size"]) == (2, 4, 32)
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and row["conv_ms"] > 0
        assert row["saved_MiB"] > 0 and (row["peak_MiB"] is None or row["peak_MiB"] > 0)
        assert row["csrc"] == common.csrc_hash() and row["sources"] == dating.sources_hash("step")
        assert row["device"] and row["commit"] and row["keep_MB"]
        # In float64 no spike changes; each of some hundred operations rounds to 2**-53.
        assert row["exact_loss_error"] < 1e-12 and row["exact_grad_error"] < 1e-11
        assert row["loss_error"] < 0.1
    for provider in PROVIDERS:
        assert sum(r["best"] for r in rows if r["provider"] == provider) == 1
    plain = next(r for r in rows if r["provider"] == "plain")
    fused = next(r for r in rows if r["provider"] == "fused")
    assert fused["saved_MiB"] < plain["saved_MiB"]
    assert "| **sewsnn** | " in tables.step_table(rows)


class MadeUpWorker:
    """A worker that answers at once; that of SpikingJelly fails in the second round."""

    breaks = "spikingjelly"

    def __init__(self, provider, case, memory_format):
        self.provider, self.turns = provider, 0

    def __call__(self, command, *arguments):
        if command == "turn":
            self.turns += 1
            if self.provider == self.breaks and self.turns == 2:
                raise RuntimeError("out of memory")
            return 100.0 + self.turns, 80.0
        return {"peak_MiB": None, "saved_MiB": 1.0} if command == "memory" else (1.0, [3.0, 4.0])

    def answer(self):
        if self.provider == self.breaks == "plain":
            raise RuntimeError("unknown model")

    def close(self):
        pass


def test_a_rival_that_fails_leaves_its_error(monkeypatch):
    monkeypatch.setattr(main, "Worker", MadeUpWorker)
    case = Case("sew_resnet18", 2, 32, 4, "float32", "cpu")
    rows = main.measure(case, ["plain", "fused", "spikingjelly"], 3)
    assert [r.get("error") for r in rows] == [None] * 4 + ["out of memory"] * 2
    assert [r.get("best") for r in rows[-2:]] == [None, None]
    for row in rows[:4]:
        assert (row["p50_ms"], row["conv_ms"], row["other_ms"], row["grad_error"]) == (102.0, 80.0, 22.0, 0.0)
    main.print_rows(rows)
    monkeypatch.setattr(MadeUpWorker, "breaks", "plain")
    with pytest.raises(SystemExit, match="the reference provider, plain, failed: unknown model"):
        main.measure(case, ["plain", "fused"], 3)


def test_relative_error():
    assert main.relative_error([3.0, 5.0], [3.0, 4.0]) == 0.2


def made_up(provider, memory_format="contiguous", p50=1000.0, other=100.0, saved=100.0, **more):
    about = {"device": "CPU", "isa": "AVX2", "threads": 2, "torch": "2.11", "date": "2026-01-01", "commit": "abc"}
    about |= {"case": "sew_resnet18", "dtype": "float32", "batch": 4, "size": 224, "T": 4, "run": "1"}
    about |= dating.dated("step")
    row = about | {"provider": provider, "memory_format": memory_format, "p50_ms": p50, "other_ms": other}
    return row | {"saved_MiB": saved, "peak_MiB": 2 * saved, "spikingjelly": "2.0.0"} | more


def judged(*rows):
    mark_best(rows := list(rows))
    return too_bad(rows)


def test_judging():
    theirs = [
        made_up("spikingjelly", p50=1300.0, other=500.0, saved=200.0),
        made_up("spikingjelly_once", p50=1.0, other=1.0, saved=1.0),  # the limits ignore the changed SpikingJelly
        made_up("spikingjelly", "channels_last", p50=1400.0, other=400.0, saved=300.0),
    ]
    assert judged(made_up("fused"), *theirs) == []
    # The faster of sewsnn's two memory formats counts, in every column.
    (found,) = judged(made_up("fused"), made_up("fused", "channels_last", p50=900.0, other=101.0), *theirs)
    assert found.startswith("sew_resnet18: everything outside the convolutions is 3.96x better")
    (found,) = judged(made_up("fused", p50=1001.0), *theirs)
    assert "the whole step is 1.30x better than SpikingJelly's, the limit is 1.3x" in found
    (found,) = judged(made_up("fused", saved=101.0), *theirs)
    assert "memory saved for backward is 1.98x" in found
    assert judged(made_up("fused")) == ["sew_resnet18: fused and spikingjelly were not both measured"]
    failed = {"case": "sew_resnet18", "provider": "fused", "error": "RuntimeError"}
    assert len(judged(failed, *theirs)) == 1
    # Every model must meet the limits.
    assert len(judged(made_up("fused"), *theirs, made_up("fused", case="sew_resnet34"))) == 1


def test_table():
    assert "not yet measured" in tables.step_table([])
    old = [made_up("fused", run="0", p50=1.0, sources="old")]
    rows = [made_up("fused"), made_up("fused", "channels_last", p50=1100.0), made_up("spikingjelly", p50=1500.0)]
    rows += [made_up("plain", p50=2000.0, peak_MiB=None), made_up("compile") | {"error": "no compiler"}]
    mark_best(rows)
    text = tables.step_table(old + rows)
    assert "| **sewsnn** | contiguous | 1000 ms | 1.00x | 100 ms | 1.00x | 100 MiB | 1.00x | 200 MiB | 1.00x |" in text
    assert "| SpikingJelly 2.0.0 | contiguous | 1500 ms | 1.50x |" in text and "unmeasured" in text
    assert "channels_last" not in text and "torch.compile" not in text and tables.OLD not in text
    assert "CPU, AVX2, 2 threads, torch 2.11, 2026-01-01, commit abc." in text
    mark_best(old)
    assert tables.OLD in tables.step_table(old)
