"""A rehearsal of python -m benchmarks.gpu without a GPU, so that its errors do not appear first on a GPU."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import common, dating
from benchmarks.gpu.__main__ import passed, run
from benchmarks.gpu.stages import Stage, stages

ROOT = Path(__file__).parent.parent


def gpu(*words):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def files(tmp_path):
    return ["--json", tmp_path / "gpu.jsonl", "--log", tmp_path / "gpu.log"]


def test_goes_on_where_it_stopped(files, tmp_path):
    chosen = ["--device", "cpu", "--quick", *files, "--only", "library", "smoke", "time_neurons"]
    first = gpu(*chosen)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = common.read_rows(tmp_path / "gpu.jsonl")
    assert [r["stage"] for r in rows if "stage" in r] == ["library", "smoke", "time_neurons"]
    measured = [r for r in rows if r.get("place")]
    assert len(measured) == 2 * 2 * 4 * 3
    shown = first.stdout.split("predicted from the machine code and measured here:\n")[1].splitlines()
    assert len(shown) == 1 + len(measured) and shown[0].split()[3:5] == ["predicted", "measured"]
    assert all("predicted_share" in row for row in measured)  # null: a CPU has no prediction
    for row in measured:
        assert row["spikes_differ"] == 0 and row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["csrc"] == common.csrc_hash() and row["sources"] == dating.sources_hash("neuron")
        assert row["device"] and row["torch"] and row["commit"]
    # All stages have passed, so nothing runs again.
    assert gpu(*chosen).returncode == 0 and len(common.read_rows(tmp_path / "gpu.jsonl")) == len(rows)
    # The verdict is lost, and half of the rows and a part of a line exist: it measures the other half.
    half = [r for r in rows if r.get("stage") != "time_neurons"]
    half = half[: len(half) // 2]
    text = "".join(json.dumps(r) + "\n" for r in half) + '{"case": "IF_forw'
    (tmp_path / "gpu.jsonl").write_text(text)
    again = gpu(*chosen)
    assert again.returncode == 0, again.stdout + again.stderr
    keys = [(r["case"], r["dtype"], r["place"]) for r in common.read_rows(tmp_path / "gpu.jsonl") if r.get("place")]
    assert len(keys) == len(set(keys)) == len(measured)


def test_budget(files, tmp_path):
    done = gpu("--device", "cpu", "--quick", *files, "--only", "tests_all", "--budget", "30")
    assert done.returncode == 0 and "not started" in done.stdout
    assert not (tmp_path / "gpu.jsonl").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--only", "tets"], "--only: unknown stage tets; known: library, smoke"),
        (["--library", "nowhere.so"], "--library: nowhere.so does not exist"),
    ],
)
def test_words_that_make_no_sense(words, message):
    done = gpu("--device", "cpu", *words)
    assert done.returncode == 2 and message in done.stderr


def verdict(command, tmp_path, limit_s=20, says=()):
    arguments = argparse.Namespace(json=tmp_path / "a.jsonl", log=tmp_path / "log", library=None, again=False)
    return run(Stage("stage", tuple(command), 100, says=says), limit_s, arguments)


def test_verdicts(tmp_path):
    good = verdict([sys.executable, "-c", "print('fine')"], tmp_path)
    assert good["ok"] and good["exit"] == 0 and good["last"] == "fine"
    bad = verdict([sys.executable, "-c", "raise SystemExit('no good')"], tmp_path)
    assert not bad["ok"] and bad["exit"] == 1 and bad["last"] == "no good"
    slow = verdict([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], tmp_path, 3)
    assert not slow["ok"] and slow["exit"] == "time limit" and slow["last"] == "begun" and slow["seconds"] < 60
    (tmp_path / "test_none.py").write_text("import pytest\n@pytest.mark.skip\ndef test_none(): pass\n")
    skipped = verdict([sys.executable, "-m", "pytest", "-q", str(tmp_path / "test_none.py")], tmp_path)
    assert not skipped["ok"] and skipped["exit"] == 0, "tests that were all skipped prove nothing"
    silent = verdict([sys.executable, "-c", "print('fine')"], tmp_path, says=("SUMMARY",))
    assert not silent["ok"] and silent["exit"] == 0, "a sanitizer that has seen nothing proves nothing"


def test_results_of_other_sources_or_devices_do_not_count():
    row = {"stage": "smoke", "ok": True, "csrc": common.csrc_hash(), "device": "A"}
    assert passed([row], "A") == {"smoke"}
    assert not passed([row], "B") and not passed([row | {"csrc": "0"}], "A") and not passed([row | {"ok": False}], "A")


def test_a_library_of_other_sources_is_not_measured(monkeypatch):
    monkeypatch.setattr(common, "csrc_hash", lambda: "0123456789ab")
    with pytest.raises(SystemExit, match="these are 0123456789ab: build it anew"):
        common.environment()


def test_stages_are_short_and_their_modules_there():
    for stage in stages("cuda", False):
        assert stage.limit_s < 600 and stage.enough_s <= stage.limit_s
        for flag, word in zip(stage.command, stage.command[1:], strict=False):
            if flag == "-m" and word.startswith("benchmarks."):
                assert importlib.util.find_spec(word), word
            if word.startswith("tests/"):
                assert (ROOT / word).exists()
