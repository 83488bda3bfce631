"""Sweeps: cells are ordinary runs, several at once; a sweep goes on after a kill and loses nothing."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import CONFIG, MEASURED, PROCESS, ROOT
from thorough import THOROUGH

from sewsnn.cli import main
from sewsnn.errors import UserError
from sewsnn.experiments import forms, surrogates, sweep
from sewsnn.experiments.report import Report
from sewsnn.experiments.sweep import Cell, run_cells
from sewsnn.models import create_model, save_checkpoint
from sewsnn.train import build
from sewsnn.train.config import differences, load_config
from sewsnn.train.schema import FREE

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
        assert forms.order(forms.spread([wild, wild]), forms.spread([fine, fine])) is True


def test_order_of_results():
    """Welch's t-test at 5 %. If some runs of a network diverged and others did not, nothing is decided."""

    def spread(*values, diverged=0):
        return forms.Spread(values, diverged)

    low, high, lost = spread(0.1, 0.11, 0.12), spread(0.2, 0.21, 0.22), spread(diverged=3)
    assert forms.order(low, high) is True and forms.order(high, low) is False
    assert forms.order(spread(0.1, 0.2, 0.3), spread(0.15, 0.25, 0.35)) is None
    assert forms.order(spread(0.9, 0.901, 0.902), spread(0.95, 0.951, diverged=1)) is None
    assert forms.order(lost, low) is True and forms.order(low, lost) is False and forms.order(lost, lost) is None
    assert forms.order(spread(0.1), spread(0.2)) is None and forms.order(spread(diverged=1), spread(0.2)) is None
    assert forms.order(spread(0.1, 0.1), spread(0.1, 0.1)) is None
    assert forms.order(spread(0.1, 0.1), spread(0.2, 0.2)) is True
    assert high.percent() == "21.0 ± 1.0 %" and spread(0.5).percent() == "50.0 %" and lost.percent() == "diverged"
    assert spread(0.5, 0.7, diverged=1).words() == "0.6000 ± 0.1414 (1 of 3 runs diverged)"


def test_kinds_are_those_of_the_recipes():
    """The cells of functions on DVS128 Gesture are the five recipes of Tables S1 and S2."""
    config = load_config(ROOT / "configs" / "dvs128_gesture" / "sew_add.yaml")
    recipes = {"ADD": "sew_add", "AND": "sew_and", "IAND": "sew_iand", "Spiking": "spiking", "Plain": "plain"}
    for kind, recipe in recipes.items():
        expected = load_config(ROOT / "configs" / "dvs128_gesture" / f"{recipe}.yaml")
        changed = set(differences(forms.of_kind(config, kind).to_dict(), expected.to_dict())) - FREE
        assert changed <= ({"model.connect_f"} if kind in ("Spiking", "Plain") else set()), (kind, changed)
    spiking = load_config(ROOT / "configs" / "imagenet" / "spiking_resnet18.yaml")
    assert forms.of_kind(spiking, "Spiking").model.zero_init_residual
    assert not forms.of_kind(spiking, "ADD").model.zero_init_residual


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
    runs = tmp_path / "runs" / "surrogates"
    unit = load_config(runs / "Spiking-unit-lr0.05-2020" / "config.yaml").model
    assert (unit.last_neuron.v_threshold, unit.last_neuron.surrogate) == (0.5, "UnitATan")
    assert (unit.neuron.v_threshold, unit.neuron.surrogate, unit.name) == (1.0, "ATan", "spiking_resnet")


def test_learning_rates_at_the_edge_are_named(tmp_path):
    """Not those of a row that is at chance everywhere, nor if there is one rate."""

    def outcome(rate, accuracy):
        row = {"test_accuracy": accuracy}
        return sweep.Outcome("a", load_config(CONFIG, {"lr": str(rate)}), tmp_path, [row], "")

    def said(*rates):
        groups = {
            (row, rate): [outcome(rate, a)] for row, of in accuracies.items() for rate, a in of.items() if rate in rates
        }
        report = Report("r", "", tmp_path)
        surrogates._say_edges(report, surrogates._best(groups), groups, chance=0.1)
        return report.text()

    accuracies = {
        "low": {0.1: 0.9, 0.2: 0.8, 0.3: 0.7},
        "middle": {0.1: 0.8, 0.2: 0.9, 0.3: 0.8},
        "high": {0.1: 0.7, 0.2: 0.8, 0.3: 0.9},
        "guess": {0.1: 0.14, 0.2: 0.1, 0.3: 0.1},
    }
    text = said(0.1, 0.2, 0.3)
    assert (
        "The smallest learning rate that was tried, 0.1, is the best one of: low. A smaller one may be better" in text
    )
    assert "The largest learning rate that was tried, 0.3, is the best one of: high. A larger one may be better" in text
    assert "learning rate" not in said(0.2)


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


@pytest.mark.parametrize("verb", ["functions", "rtd", "surrogates"])
def test_configurations_of_analyses_fit_every_network(verb):
    """All that sewsnn analyze would train with a file in configs/analysis can be built and takes a batch."""
    words = {} if verb == "surrogates" else {"data.generated": "4"}
    config = load_config(ROOT / "configs" / "analysis" / f"{verb}.yaml", {"batch_size": "2"} | words)
    variants = (
        surrogates._variants(config) if verb == "surrogates" else {k: forms.of_kind(config, k) for k in forms.KINDS}
    )
    forms.check_cells([Cell(label, one) for label, one in variants.items()])
    for one in variants.values():
        data = build.build_data(one)
        x, _ = next(iter(data.train_batches(0)))
        assert build.build_model(one, data)(data.to_float(x)).shape == (2, 10)


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
    words = ("analyze", "surrogates", CONFIG, "--output", out, "--model.weights", tmp_path / "nothing.pt")
    assert "there is no checkpoint" in one_line(capsys, *words)
    net = create_model("sew_resnet18", num_classes=10)
    save_checkpoint(net, tmp_path / "other.pt")
    words = ("analyze", "functions", CONFIG, "--output", out, "--model.weights", tmp_path / "other.pt")
    assert "other.pt" in one_line(capsys, *words)
    assert not out.exists()
    (tmp_path / "file").write_text("kept")
    assert "file" in one_line(capsys, "analyze", "functions", CONFIG, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
