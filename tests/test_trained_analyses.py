"""``sewsnn analyze functions``, ``rtd`` and ``surrogates``: what they train, what they say, and wrong input."""

import dataclasses

import pytest
from reports import WORDS, check_report, rows
from runs import CONFIG, ROOT
from small_run import error_of

from sewsnn.cli import main
from sewsnn.experiments import forms, surrogates, sweep
from sewsnn.experiments.report import Report
from sewsnn.experiments.sweep import Cell
from sewsnn.models import create_model, save_checkpoint
from sewsnn.train import build
from sewsnn.train.config import differences, load_config
from sewsnn.train.schema import FREE


def analyze(verb, folder, *words, config=CONFIG):
    return main(["analyze", verb, str(config), "--output", str(folder), "--analysis.jobs", "1", *words])


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


def test_surrogates(tmp_path):
    words = [*WORDS, "--epochs", "1", "--analysis.seeds", "1", "--analysis.sweep", "[0.5, 1.0]", "--T", "1"]
    assert analyze("surrogates", tmp_path, *words) == 0
    text = check_report(tmp_path, "surrogates")
    found = rows(tmp_path, "surrogates-runs")
    assert len(found) == 7 * 2 and {row["learning_rate"] for row in found} == {"0.025", "0.05"}
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
    text = check_report(tmp_path, "rtd")
    assert "data: dvs128_gesture, generated; " in text and text.count("Undecided: ") == 9
    assert text.count("The samples are generated, so accuracies have no meaning.") == 10
    assert "97.92" not in text, "no published accuracy beside one that has no meaning"
    found = rows(tmp_path, "rtd-epochs")
    assert len(found) == 3 * 2 * 2 and {row["network"] for row in found} == {"Plain", "Spiking", "SEW"}
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


def test_bad_input(tmp_path, capsys):
    out = tmp_path / "out"
    assert "still images" in error_of(("analyze", "rtd", CONFIG, "--output", out), capsys)
    words = ("analyze", "rtd", EVENTS, "--output", out, "--data.generated", "8", "--T_train", "16")
    assert "data.T_train must be below model.T (16)" in error_of(words, capsys)
    wide = ROOT / "configs" / "cifar10_dvs" / "sew_add_T4.yaml"
    assert "there is no spiking form of sew_wide_7b_net" in error_of(
        ("analyze", "functions", wide, "--output", out), capsys
    )
    for key, value in {"seeds": "0", "sweep": "[]", "sweep ": "[0]", "jobs": "-1", "settings": "[[1]]"}.items():
        words = ("analyze", "surrogates", CONFIG, "--output", out, f"--analysis.{key.strip()}", value)
        assert f"analysis.{key.strip()}" in error_of(words, capsys)
    for key in ("ADD", "Plain"):
        words = ("analyze", "functions", CONFIG, "--output", out, f"--analysis.learning_rates.{key}", "-1")
        assert f"analysis.learning_rates.{key}" in error_of(words, capsys)
    words = ("analyze", "surrogates", CONFIG, "--output", out, "--model.weights", tmp_path / "nothing.pt")
    assert "there is no checkpoint" in error_of(words, capsys)
    net = create_model("sew_resnet18", num_classes=10)
    save_checkpoint(net, tmp_path / "other.pt")
    words = ("analyze", "functions", CONFIG, "--output", out, "--model.weights", tmp_path / "other.pt")
    assert "other.pt" in error_of(words, capsys)
    assert not out.exists()
    (tmp_path / "file").write_text("kept")
    assert "file" in error_of(("analyze", "functions", CONFIG, "--output", tmp_path / "file"), capsys)
    assert (tmp_path / "file").read_text() == "kept"
