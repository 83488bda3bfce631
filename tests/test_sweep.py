"""Sweeps: cells are ordinary runs, several at once; a sweep goes on after a kill and loses nothing."""

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from runs import CONFIG, MEASURED, PROCESS, ROOT
from thorough import THOROUGH

from sewsnn.cli import main
from sewsnn.errors import UserError
from sewsnn.experiments import forms
from sewsnn.experiments.sweep import Cell, run_cells
from sewsnn.train.config import load_config

SMALL = {"blocks": "[1]", "widths": "[4]", "T": "2", "epochs": "2", "batch_size": "128", "train.threads": "1"}
WORDS = [word for key, value in SMALL.items() for word in (f"--{key}", value)]


def cells(**rates):
    """One small run per learning rate."""
    return [Cell(name, load_config(CONFIG, SMALL | {"lr": str(lr)})) for name, lr in rates.items()]


def numbers(outcome):
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in outcome.history]


def test_cells_are_ordinary_runs(tmp_path, capsys):
    """Every cell has the files and the numbers of a run of sewsnn train, and is read the next time."""
    found = run_cells(cells(a=0.05, b=0.1, c=0.2), tmp_path / "sweep", jobs=2)
    assert [o.name for o in found] == ["a", "b", "c"] and not any(o.diverged for o in found)
    assert main(["train", str(CONFIG), *WORDS, "--lr", "0.1", "--output", str(tmp_path / "alone")]) == 0
    with open(tmp_path / "alone" / "metrics.csv") as file:
        alone = [float(row["test_accuracy"]) for row in csv.DictReader(file)]
    assert [row["test_accuracy"] for row in found[1].history] == alone
    assert found[1].accuracy == alone[-1] and found[1].best == max(alone)
    assert (tmp_path / "sweep" / "b" / "result.json").exists() and (tmp_path / "sweep" / "logs" / "b.log").exists()
    before = (tmp_path / "sweep" / "b" / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    again = run_cells(cells(a=0.05, b=0.1, c=0.2), tmp_path / "sweep")
    assert [numbers(o) for o in again] == [numbers(o) for o in found]
    assert (tmp_path / "sweep" / "b" / "result.json").stat().st_mtime_ns == before and capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"sweep/b holds a run with other settings \(optimizer.lr\)"):
        run_cells(cells(a=0.05, b=0.3), tmp_path / "sweep")


def test_a_run_that_diverges_is_an_outcome(tmp_path):
    """It is not trained again, and the others go on."""
    for _ in range(2):
        wild, fine = run_cells(cells(wild=1e29, fine=0.1), tmp_path / "sweep", jobs=1)
        assert "not finite" in wild.diverged and wild.accuracy is None and fine.accuracy > 0
        found = forms.spread([wild, fine])
        assert found.diverged == 1 and found.values == (fine.accuracy,) and "1 of 2 runs diverged" in found.percent()
        assert forms.order(forms.spread([wild]), forms.spread([fine, fine])) is True


def test_a_run_that_fails_stops_the_sweep(tmp_path):
    first, bad = cells(first=0.1, bad=0.1)
    bad.config.data.name, bad.config.data.root = "cifar10", str(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"^run bad: .*nothing") as caught:
        run_cells([first, bad], tmp_path / "sweep", jobs=1)
    assert "\n" not in str(caught.value)


def started(folder, *more):
    """Starts a sweep of five runs in a process of its own."""
    words = ["--analysis.seeds", "1", "--analysis.jobs", "2", *WORDS, "--epochs", "3", *more]
    command = [sys.executable, "-m", "sewsnn.cli", "analyze", "functions", str(CONFIG), "--output", str(folder), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **PROCESS)


def wait_until(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def workers_of(process):
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def epochs_of(folder):
    with open(folder / "functions-epochs.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, *([signal.SIGINT] if THOROUGH else [])])
def test_goes_on_after_a_kill(how, tmp_path, whole):
    """Workers end with their parent, runs that were stopped are saved, and the same command ends with the same
    numbers as a sweep that was never stopped."""
    folder = tmp_path / "parts"
    process = started(folder)
    runs = folder / "runs" / "functions"
    wait_until(lambda: list(runs.glob("*/checkpoint.pt")), process)
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == 130 and "the same command continues" in err.strip().splitlines()[-1], err
    end = time.monotonic() + 20
    while any(map(is_there, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_there, workers)), "a worker is still there"
    assert not list(folder.glob("functions*")), "a part of the report was written"
    assert len(list(runs.glob("*/result.json"))) < 5
    process = started(folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"wrote {folder / 'functions.md'}" in out
    assert epochs_of(folder) == epochs_of(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    process = started(folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    process = started(tmp_path / "sweep")
    runs = tmp_path / "sweep" / "runs" / "functions"
    wait_until(lambda: list(runs.glob("*/config.yaml")), process)
    other = started(tmp_path / "sweep")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 1 and "sewsnn: error: " in err.splitlines()[-1] and str(runs) in err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_killed_worker_names_its_run(tmp_path):
    process = started(tmp_path / "sweep")
    runs = tmp_path / "sweep" / "runs" / "functions"
    wait_until(lambda: list(runs.glob("*/config.yaml")), process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    last = err.splitlines()[-1]
    assert process.returncode == 1 and "signal SIGKILL" in last and "The same command continues" in last, err


# ---- the commands


def analyze(verb, folder, *words, config=CONFIG):
    return main(["analyze", verb, str(config), "--output", str(folder), "--analysis.jobs", "1", *words])


def check_report(folder, name):
    """The report names only files that exist, every column of every CSV file is explained, figures are figures."""
    text = (folder / f"{name}.md").read_text()
    for path in folder.glob(f"{name}-*"):
        if path.suffix == ".csv":
            header = path.read_text().splitlines()[0].split(",")
            part = text.partition(f"[{path.name}]({path.name}):")[2].partition("\n\n[")[0]
            for column in header:
                assert f"- `{column}`: " in part, (path.name, column)
        if path.suffix == ".png":
            assert path.read_bytes()[:4] == b"\x89PNG" and f"({path.name})" in text
            assert b"<svg" in path.with_suffix(".svg").read_bytes()[:500]
    assert "## What is seen" in text
    return text


def test_functions(whole):
    text = check_report(whole, "functions")
    for kind, rate in {"ADD": 0.001, "AND": 0.03, "IAND": 0.063, "Spiking": 0.1, "Plain": 0.005}.items():
        assert f"| {kind} | {rate:g} |" in text
    rows = epochs_of(whole)
    assert len(rows) == 5 * 3 and {row["seed"] for row in rows} == {"2020"}
    assert (whole / "functions-blocks.csv").exists()


def test_surrogates(tmp_path):
    words = [*WORDS, "--epochs", "1", "--analysis.seeds", "1", "--analysis.sweep", "[0.5, 1.0]", "--T", "1"]
    assert analyze("surrogates", tmp_path, *words) == 0
    text = check_report(tmp_path, "surrogates")
    with open(tmp_path / "surrogates-runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 2 and {row["learning_rate"] for row in rows} == {"0.025", "0.05"}
    assert "82.63 % (CIFAR-10)" in text
    assert re.search("The (smallest|largest) learning rate that was tried, 0.0(25|5), is the best one of: ", text)
    runs = tmp_path / "runs" / "surrogates"
    unit = load_config(runs / "Spiking-unit-lr0.05-2020" / "config.yaml").model
    assert (unit.last_neuron.v_threshold, unit.last_neuron.surrogate) == (0.5, "UnitATan")
    assert (unit.neuron.v_threshold, unit.neuron.surrogate, unit.name) == (1.0, "ATan", "spiking_resnet")


EVENTS = ROOT / "configs" / "dvs128_gesture" / "sew_add.yaml"
SMALL_EVENTS = ["--data.generated", "24", "--frame_size", "32", "--T", "4", "--T_train", "3", "--batch_size", "12"]
SMALL_EVENTS += ["--blocks", "[1, 1, 1, 1, 1]", "--widths", "[4, 4, 4, 4, 4]", "--epochs", "1", "--amp", "off"]


def test_rtd(tmp_path):
    assert analyze("rtd", tmp_path, *SMALL_EVENTS, "--analysis.seeds", "2", config=EVENTS) == 0
    check_report(tmp_path, "rtd")
    with open(tmp_path / "rtd-epochs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2 and {row["network"] for row in rows} == {"Plain", "Spiking", "SEW"}
    runs = tmp_path / "runs" / "rtd"
    with_rtd, without = (load_config(runs / f"SEW-{w}-RTD-2020" / "config.yaml") for w in ("with", "without"))
    assert (with_rtd.data.T_train, without.data.T_train) == (3, 0)
    assert dataclasses.replace(with_rtd.data, T_train=0) == without.data


def one_line(capsys, *words):
    capsys.readouterr()
    assert main(list(map(str, words))) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("sewsnn: error: "), err
    return err


def test_bad_input(tmp_path, capsys):
    out = tmp_path / "out"
    assert "still images" in one_line(capsys, "analyze", "rtd", CONFIG, "--output", out)
    words = ("analyze", "rtd", EVENTS, "--output", out, "--data.generated", "8", "--T_train", "16")
    assert "data.T_train must be below model.T (16)" in one_line(capsys, *words)
    wide = ROOT / "configs" / "cifar10_dvs" / "sew_add_T4.yaml"
    assert "there is no spiking form of sew_wide_7b_net" in one_line(
        capsys, "analyze", "functions", wide, "--output", out
    )
    for key, value in {"seeds": "0", "sweep": "[]", "sweep ": "[0]", "jobs": "-1", "settings": "[[1]]"}.items():
        words = ("analyze", "surrogates", CONFIG, "--output", out, f"--analysis.{key.strip()}", value)
        assert f"analysis.{key.strip()}" in one_line(capsys, *words)
    for key in ("ADD", "Plain"):
        words = ("analyze", "functions", CONFIG, "--output", out, f"--analysis.learning_rates.{key}", "-1")
        assert f"analysis.learning_rates.{key}" in one_line(capsys, *words)
    assert not out.exists()
    (tmp_path / "file").write_text("kept")
    assert "file" in one_line(capsys, "analyze", "functions", CONFIG, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
