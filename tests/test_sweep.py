"""Sweeps: cells are ordinary runs, several at once; a sweep goes on after a kill and loses nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from reports import SMALL, WORDS, check_report, rows
from runs import CONFIG, MEASURED, PROCESS, ROOT
from thorough import THOROUGH

from sewsnn.cli import main
from sewsnn.errors import UserError
from sewsnn.experiments import forms, sweep
from sewsnn.experiments.sweep import Cell, run_cells
from sewsnn.train.config import load_config


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
        assert forms.order(forms.spread([wild, wild]), forms.spread([fine, fine])) is True


def test_workers_use_the_modules_of_their_parent(tmp_path, monkeypatch):
    """Not a folder sewsnn in the working directory, which python -m would prefer."""
    (tmp_path / "sewsnn").mkdir()
    (tmp_path / "sewsnn" / "__init__.py").write_text("raise SystemExit('the wrong sewsnn')\n")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.chdir(tmp_path)
    (found,) = run_cells(cells(a=0.1), tmp_path / "sweep", jobs=1)
    assert found.accuracy > 0
    log = (tmp_path / "sweep" / "logs" / "a.log").read_text()
    assert "epoch" in log and "\r" not in log, "a log holds lines, no progress bars"


def test_worker_of_a_parent_that_has_ended_trains_nothing(tmp_path):
    """Also if the parent ends before the worker has started up."""
    run = {"name": "a", "config": cells(a=0.1)[0].config.to_dict() | {"output": str(tmp_path / "a")}}
    line = json.dumps(run | {"log": str(tmp_path / "a.log")})
    code = (
        "import subprocess, sys, os; from sewsnn.experiments import worker; "
        "child = subprocess.Popen(worker.command(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL); "
        f"child.stdin.write({line!r}.encode() + b'\\n'); child.stdin.flush(); print(child.pid, flush=True); os._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **PROCESS).stdout
    end = time.monotonic() + 60
    while is_there(int(out)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_there(int(out)) and not (tmp_path / "a").exists()


def test_damaged_metrics_are_named(tmp_path):
    run_cells(cells(a=0.1), tmp_path, jobs=1)
    path = tmp_path / "a" / "metrics.csv"
    first = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    for damaged in (first, b"\xff\xfe\x00", b"epoch,lr\n0,1\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a/metrics.csv is missing, damaged or incomplete; remove .*a to train"):
            run_cells(cells(a=0.1), tmp_path, jobs=1)


def test_finished_runs_on_other_data_are_refused(tmp_path):
    for root in ("one", "two"):
        (tmp_path / root).mkdir()
    (cell,) = cells(a=0.1)
    cell.config.data.root = str(tmp_path / "one")
    run_cells([cell], tmp_path / "sweep", jobs=1)
    cell.config.data.root = str(tmp_path / "two" / ".." / "one")
    cell.config.train.threads = 2
    run_cells([cell], tmp_path / "sweep", jobs=1)
    cell.config.data.root = str(tmp_path / "two")
    with pytest.raises(UserError, match=r"holds a finished run on the data in .*one, not in .*two"):
        run_cells([cell], tmp_path / "sweep", jobs=1)
    with pytest.raises(UserError, match="have the same name"):
        run_cells([cell, cell], tmp_path / "sweep", jobs=1)


@pytest.mark.parametrize(
    "device, gpus, threads, jobs, expected",
    [("cpu", 8, 1, 0, 4), ("cpu", 0, 3, 0, 1), ("auto", 8, 1, 0, 8), ("cuda", 2, 1, 0, 2), ("cuda:1", 8, 1, 0, 1),
     ("cpu", 0, 9, 0, 1), ("cuda:1", 8, 1, 3, 3), ("auto", 0, 2, 0, 2)],
)  # fmt: skip
def test_number_of_jobs(device, gpus, threads, jobs, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(sweep, "processors", lambda: 4)
    some = cells(**{f"c{i}": 0.1 + i / 100 for i in range(9)})
    for cell in some:
        cell.config.train.device, cell.config.train.threads = device, threads
    some = [sweep._placed(cell, tmp_path) for cell in some]
    assert sweep._Pool(some, some, tmp_path, jobs).jobs == expected


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
    return rows(folder, "functions-epochs")


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
    process = started(tmp_path / "sweep", "--epochs", "500")
    runs = tmp_path / "sweep" / "runs" / "functions"
    wait_until(lambda: list(runs.glob("*/config.yaml")), process)
    other = started(tmp_path / "sweep")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 1 and "sewsnn: error: " in err.splitlines()[-1] and str(runs) in err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_killed_worker_names_its_run(tmp_path):
    process = started(tmp_path / "sweep", "--epochs", "500")
    runs = tmp_path / "sweep" / "runs" / "functions"
    wait_until(lambda: list(runs.glob("*/config.yaml")), process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    last = err.splitlines()[-1]
    assert process.returncode == 1 and "signal SIGKILL" in last and "The same command continues" in last, err


def test_functions(whole):
    text = check_report(whole, "functions")
    for kind, rate in {"ADD": 0.001, "AND": 0.03, "IAND": 0.063, "Spiking": 0.1, "Plain": 0.005}.items():
        assert f"| {kind} | {rate:g} |" in text
    assert "| 97.92 % (DVS Gesture) |" in text and "| 91.67 % (DVS Gesture, reported by others, uncertain) |" in text
    found = epochs_of(whole)
    assert len(found) == 5 * 3 and {row["seed"] for row in found} == {"2020"}
    assert (whole / "functions-blocks.csv").exists()
