"""``sewsnn analyze rates``: its sources, what it says, and wrong input."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from statistics import fmean
from types import SimpleNamespace

import pytest
import small_run
import torch
import yaml
from reports import analyze_rates, check_report, networks_in, rows
from runs import CONFIG, PROCESS, ROOT
from small_run import CHECKPOINT, names
from torch import nn

from sewsnn.analysis.blocks import BlockRate
from sewsnn.cli import main
from sewsnn.errors import DataError
from sewsnn.experiments import sources
from sewsnn.experiments.rate_figures import Run, add_block_rates
from sewsnn.experiments.report import Report
from sewsnn.models.network import Network
from sewsnn.models.registry import _MODELS
from sewsnn.train import build
from sewsnn.train.config import load_config

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = ["--blocks", "[2, 1]", "--widths", "[4, 6]", "--T", "3", "--threads", "1"]
TINY = ["--blocks", "[1]", "--widths", "[4]", "--T", "2", "--threads", "1"]
EVENTS = ROOT / "configs" / "dvs128_gesture" / "sew_add.yaml"
EVENT_SIZE = ["--blocks", "[1, 2]", "--widths", "[4, 6]", "--T", "3", "--threads", "1", "--neuron.type", "IF"]
EVENT_SIZE += ["--data.generated", "8", "--frame_size", "16", "--T_train", "0", "--batch_size", "4"]
FILES = [f"rates-{name}" for name in ("blocks.csv", "blocks.png", "blocks.svg", "layers.csv", "operations.csv")]
FILES += ["rates.md"]


# ---- its sources


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return small_run.make(tmp_path_factory.mktemp("rates") / "run")


def run_at(trained, folder, **model):
    """A copy of a run with other settings of its network, which fit its weights."""
    shutil.copytree(trained, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    name = model.pop("run_name", None)
    config["model"] |= model
    config["name"] = name or config["name"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    return folder


def test_fresh_networks_with_every_connection(tmp_path):
    out = tmp_path / "new" / "report"
    words = [*SIZE, "--analysis.batches", "2"]
    assert analyze_rates(CONFIG, out, *words) == 0
    text = check_report(out, "rates")
    assert networks_in(out) == ["ADD", "AND", "IAND"]
    assert "weights: random; batch norm has the statistics of 8 training batches" in text
    assert "data: 2 of 12 batches of the test set of digits" in text
    blocks = rows(out, "rates-blocks")
    o = {name: [float(row["O"]) for row in blocks if row["network"] == name] for name in networks_in(out)}
    first = [row for row in blocks if row["block"] == "1"]
    assert len({(row["S"], row["A"]) for row in first}) == 1, "all have the same first layers"
    s, a = float(first[0]["S"]), float(first[0]["A"])
    assert o["ADD"][0] == pytest.approx(s + a, rel=1e-15) and 0 < o["AND"][0] < s
    assert o["IAND"][0] + o["AND"][0] == pytest.approx(s, rel=1e-15)
    lowest = sum(o["AND"][i] <= min(o["ADD"][i], o["IAND"][i]) for i in range(3))
    answer = "Holds" if lowest == 3 else "**Does not hold**"
    a_l = {name: [float(row["A"]) for row in blocks if row["network"] == name] for name in o}
    higher = [str(i + 1) for i in range(3) if a_l["AND"][i] > min(a_l["ADD"][i], a_l["IAND"][i])]
    where = f"; in block {', '.join(higher)} another network has a lower rate." if higher else "."
    means = ", ".join(f"{name} {fmean(of_blocks):.4g}" for name, of_blocks in a_l.items())
    of_a = "**Does not hold**" if higher else "Holds"
    assert f"lowest rates of A^l (A.3, Fig. S2a). {of_a}: mean rate over the blocks: {means}{where}" in text
    assert (
        f"lowest rates of O^l (A.3, Fig. S2b). {answer}: mean rate over the blocks: ADD {fmean(o['ADD']):.4g}, " in text
    )
    between = sum(o["AND"]) <= sum(o["IAND"]) <= sum(o["ADD"])
    assert f"between those of AND and ADD. {'Holds' if between else '**Does not hold**'}" in text
    ends = ", ".join(f"{name} {of_blocks[-1]:.4g}" for name, of_blocks in o.items())
    assert f"rate of O^l in the last block: {ends}; AND has {o['AND'][0]:.4g} in block 1 of 3." in text


def test_a_fresh_network_without_connections(tmp_path):
    for name in ("spiking_resnet", "plain_resnet"):
        assert analyze_rates(CONFIG, tmp_path / name, *TINY, "--analysis.batches", "1", "--model.name", name) == 0
        text = check_report(tmp_path / name, "rates")
        assert networks_in(tmp_path / name) == ["digits"] and "What is seen" not in text
        assert all((row["A"] == "") == (name == "spiking_resnet") for row in rows(tmp_path / name, "rates-blocks"))


def test_a_run_and_its_weights(tmp_path, trained):
    """Both sources give the same numbers; the report names the file."""
    assert analyze_rates(trained, tmp_path / "a", "--threads", "1") == 0
    assert analyze_rates(CONFIG, tmp_path / "b", *TINY, "--weights", trained / CHECKPOINT) == 0
    words = [*TINY, "--model.weights", trained / CHECKPOINT]
    assert analyze_rates(CONFIG, tmp_path / "c", *words) == 0
    for table in ("rates-blocks", "rates-layers", "rates-operations"):
        assert rows(tmp_path / "a", table) == rows(tmp_path / "b", table) == rows(tmp_path / "c", table)
    files = {"a": trained, "b": trained / CHECKPOINT, "c": trained / CHECKPOINT}
    for folder, file in files.items():
        text = check_report(tmp_path / folder, "rates")
        assert f"weights: of `{file}`\n" in text and "data: test set of digits\n" in text
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("rates-*")}
    assert analyze_rates(trained, tmp_path / "a", "--threads", "1") == 0
    assert all((tmp_path / "a" / name).read_bytes() == data for name, data in before.items())


def test_several_runs_are_named(tmp_path, trained, monkeypatch):
    runs = [run_at(trained, tmp_path / f"run-{c}", connect_f=c) for c in ("IAND", "ADD", "AND")]
    assert analyze_rates(runs, tmp_path / "out") == 0
    text = check_report(tmp_path / "out", "rates")
    assert networks_in(tmp_path / "out") == ["IAND", "ADD", "AND"] and "## What is seen" in text
    assert f"weights: of `{runs[0]}`, `{runs[1]}`, `{runs[2]}`\n" in text
    svg = (tmp_path / "out" / "rates-blocks.svg").read_text()
    assert all(f"<!-- {name} -->" in svg for name in ("IAND", "ADD", "AND"))
    other = run_at(trained, tmp_path / "run-spiking", name="spiking_resnet")
    assert analyze_rates([*runs, other], tmp_path / "out") == 0
    assert networks_in(tmp_path / "out") == ["run-IAND", "run-ADD", "run-AND", "run-spiking"]
    assert (
        "network: sew_resnet (blocks [1], widths [4]), spiking_resnet (blocks [1], widths [4]), T = 2;"
        in check_report(tmp_path / "out", "rates")
    )
    same_name = run_at(trained, tmp_path / "deeper" / "run-ADD", connect_f="ADD")
    assert analyze_rates([runs[1], same_name], tmp_path / "out") == 0
    assert networks_in(tmp_path / "out") == [str(runs[1]), str(same_name)]
    monkeypatch.chdir(runs[1])
    assert analyze_rates([".", "../run-AND", "../run-spiking/"], "report") == 0  # the output is in the folder of a run
    assert networks_in(runs[1] / "report") == ["run-ADD", "run-AND", "run-spiking"]


def test_connections_are_compared_only_if_the_rest_is_the_same(tmp_path, trained):
    """Runs that differ in T as well keep the names of their folders, and there is no statement about them."""
    runs = [run_at(trained, tmp_path / c, connect_f=c, T=2 + (c == "AND")) for c in ("ADD", "AND", "IAND")]
    assert analyze_rates(runs, tmp_path / "out") == 0
    text = check_report(tmp_path / "out", "rates")
    assert networks_in(tmp_path / "out") == ["ADD", "AND", "IAND"] and "What is seen" not in text
    assert "network: sew_resnet (blocks [1], widths [4]), T = 2, 3; data" in text


NAMES = [
    "a|b",
    "[x](y) *z* `c`",
    "_under_",
    "$x^$",
    "<b>\\",
    "{} {0} %s",
    b"\xff".decode(errors="surrogateescape"),
    "a\nb",
]
SHOWN = ["a\\|b", r"\[x\](y) \*z\* \`c\`", r"\_under\_", r"\$x^\$", r"\<b\>\\", "{} {0} %s", r"\\udcff", r"a\\nb"]


def test_names_that_are_markup(tmp_path, trained):
    """Names of folders look as they are in the table, in the text and in the legend."""
    runs = [run_at(trained, tmp_path / name) for name in NAMES]
    assert analyze_rates(runs, tmp_path / "out [x]") == 0
    text = check_report(tmp_path / "out [x]", "rates")
    table = [line for line in text.splitlines() if line.endswith(" |")]
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in SHOWN]
    assert all(line.replace("\\|", "").count("|") == 8 for line in table)
    assert all(f"\n**{name}**: " in text for name in SHOWN)
    assert networks_in(tmp_path / "out [x]") == [*NAMES[:-2], "\\udcff", "a\\nb"]
    one = run_at(trained, tmp_path / "one", run_name="$x^$ | 1")
    assert analyze_rates(one, tmp_path / "single") == 0
    assert "| \\$x^\\$ \\| 1 | " in check_report(tmp_path / "single", "rates")


def test_many_networks_have_different_marks():
    labels, lines = ["_a", *(f"${i}" for i in range(9))], []

    class Drawn:
        def figure(self, name, figure, caption):
            for panel in figure.axes:
                lines.append(panel.lines)
                texts = [text.get_text() for text in panel.get_legend().get_texts()]
                assert texts == [" _a", *(f"\\${i}" for i in range(9))]  # matplotlib shows \\$ as $

        def table(self, *args):
            pass

    of = [BlockRate("layer1.0", 0.5, 0.25, 0.75, 0.5)]
    add_block_rates(Drawn(), {name: [Run(2020, of)] for name in labels}, compare=True)
    for of_panel in lines:
        assert len({(line.get_color(), line.get_marker()) for line in of_panel}) == len(labels)


def test_statements_must_hold_for_every_seed(tmp_path):
    def of(seed, *o):
        return Run(seed, [BlockRate(f"layer1.{i}", 0.5, 0.25, rate, rate) for i, rate in enumerate(o)])

    measured = {
        "ADD": [of(1, 0.5, 0.6), of(2, 0.5, 0.7)],
        "AND": [of(1, 0.1, 0.0), of(2, 0.1, 0.0)],
        "IAND": [of(1, 0.3, 0.4), of(2, 0.6, 0.8)],
    }
    report = Report("r", "Rates", tmp_path)
    add_block_rates(report, measured, compare=True)
    assert [found.holds for found in report.findings] == [True, True, True, False]
    assert report.findings[3].evidence.startswith("so it is for 1 of 2 seeds; ")
    assert "ADD 0.575, AND 0.05, IAND 0.525" in report.findings[3].evidence
    assert "rate of O^l in the last block: ADD 0.65, AND 0, IAND 0.6; AND has 0.1 in block 1 of 2" in str(
        report.findings
    )
    report.write()
    with open(tmp_path / "r-blocks.csv") as file:
        found = {(row["network"], row["seed"], row["block"]): row["O"] for row in csv.DictReader(file)}
    assert len(found) == 12 and found["IAND", "2", "2"] == "0.8"
    assert "bands: from the least to the largest value" in (tmp_path / "r.md").read_text()
    report = Report("r", "Rates", tmp_path)
    silent = {name: [of(1, 0.0, 0.0)] for name in measured}
    add_block_rates(report, silent, compare=True)
    assert not report.findings and "No neuron in the blocks of these networks fires" in report.text()


def test_damaged_samples_are_counted(tmp_path, trained, monkeypatch):
    opened = build.build_data

    def with_damage(config):
        data = opened(config)
        data.corrupt = {"a.jpg": "a.jpg is damaged", "b.jpg": "b.jpg is damaged"}
        return data

    monkeypatch.setattr(build, "build_data", with_damage)
    assert analyze_rates(trained, tmp_path / "out") == 0
    assert "- left out as damaged: 2 samples\n" in check_report(tmp_path / "out", "rates")


@pytest.mark.parametrize("corrupt, reason", [({}, "there are no samples"), ({"a": "a is\ndamaged"}, "a is damaged")])
def test_no_sample_at_all(corrupt, reason):
    config = load_config(CONFIG)
    data = SimpleNamespace(
        test_batches=lambda: iter(()),
        train_batches=lambda epoch: iter(()),
        corrupt=corrupt,
        to_float=None,
        test_steps=1,
    )
    opened = sources.Opened("x", config, nn.Linear(1, 1), data, True)
    with pytest.raises(DataError, match=f"^cannot read any test sample of digits: {reason}$"):
        list(sources.test_batches(opened))
    with pytest.raises(DataError, match="any training sample"):
        list(sources.train_batches(opened, 1))


# ---- wrong input


def error_of(words, capsys):
    """Returns the line of error with which a command ends, and that stays on a terminal after progress bars."""
    capsys.readouterr()
    with small_run.same_threads():
        assert main([str(word) for word in words]) == 1
    out, err = capsys.readouterr()
    line = err.rpartition("\r")[2]
    assert line.startswith("sewsnn: error: ") and line.index("\n") == len(line) - 1 and not out, err
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return line


class NoBlocks(Network):
    def __init__(self, num_classes, in_channels, T, **_):
        super().__init__(T, in_channels, num_classes, False)
        self.fc = nn.Linear(in_channels, num_classes)


def bad_cases(trained, folder):
    """Words of the command -> what its error must say."""
    (folder / "not a run").mkdir()
    damaged = run_at(trained, folder / "damaged") / CHECKPOINT
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 255
    damaged.write_bytes(data)
    state = torch.load(trained / CHECKPOINT)["model"]
    torch.save(state | {"layer1.0.conv2.weight": state["layer1.0.conv2.weight"] * float("nan")}, folder / "nan.pt")
    other = ["--blocks", "[1]", "--widths", "[8]", "--T", "2"]
    one_value = ["--blocks", "[1, 1, 1, 1]", "--widths", "[2, 2, 2, 2]", "--T", "1", "--batch_size", "1"]
    too_small = ["--model.name", "sew_cifar10_net", "--blocks", "[]", "--widths", "[]", "--stem", "null"]
    without = ["--model.name", "no_blocks", "--blocks", "[]", "--widths", "[]"]
    return {
        (CONFIG, *other, "--weights", trained / CHECKPOINT): "run/checkpoint.pt does not fit the model",
        (CONFIG, *TINY, "--weights", damaged): f"{damaged} is not a readable checkpoint",
        (damaged.parent,): f"{damaged} is not a readable checkpoint",
        (CONFIG, *TINY, "--weights", folder / "nan.pt"): "nan.pt: layer1.0.conv2.weight holds infinite or NaN values",
        (CONFIG, *TINY, "--model.weights", folder / "nan.pt"): "nan.pt: layer1.0.conv2.weight holds infinite or NaN",
        (CONFIG, *TINY, "--weights", folder / "none.pt"): "there is no checkpoint",
        (trained, "--weights", ""): "--weights must name a checkpoint",
        (folder / "none.yaml",): "none.yaml",
        (folder / "not a run",): "not a run is not the folder of a run: it has no config.yaml",
        (trained, "--v_threshold", "1e9"): "no neuron of digits fires (data: test set of digits), so",
        (CONFIG, *TINY, "--v_threshold", "1e9"): "no neuron of ADD, AND, IAND fires (data: ",
        (CONFIG, *TINY, "--nonsense", "1"): "unknown key 'nonsense'",
        (CONFIG, *without): "no_blocks has no residual blocks",
        (CONFIG, *one_value): "sew_resnet cannot run on the data digits: z_seq must have more than one value per",
        (CONFIG, *too_small): "sew_cifar10_net cannot run on the data digits: x must be at least 32 x 32 pixels",
        (trained, CONFIG): f"several sources must be folders of runs, and {CONFIG} is not a folder",
        (CONFIG, trained): f"several sources must be folders of runs, and {CONFIG} is not a folder",
        (trained, damaged.parent, "--weights", trained / CHECKPOINT): "--weights belongs to one configuration file",
        (trained, f"{trained}/../{trained.name}/"): "are the same folder; give each SOURCE once",
    }


def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, trained):
    monkeypatch.setitem(_MODELS, "no_blocks", lambda **settings: NoBlocks(**settings))
    for words, expected in bad_cases(trained, tmp_path).items():
        error = error_of(["analyze", "rates", *words, "--output", tmp_path / "out" / "deeper"], capsys)
        assert expected in error, (words, error)
        assert not (tmp_path / "out").exists(), words


def test_output_that_cannot_be_written(tmp_path, capsys, trained):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for output in ("file", "file/deeper", "link", "x" * 300):
        error = error_of(["analyze", "rates", trained, "--output", tmp_path / output], capsys)
        assert output.partition("/")[0] in error
    error = error_of(["analyze", "rates", trained, "--output", "/proc/sewsnn/report"], capsys)
    assert "cannot write to the output folder /proc: " in error
    assert names(tmp_path) == ["file", "link"] and (tmp_path / "file").read_text() == "kept"


def test_an_error_keeps_an_earlier_report(tmp_path, capsys, trained):
    assert analyze_rates(trained, tmp_path) == 0
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    error_of(["analyze", "rates", trained, "--output", tmp_path, "--v_threshold", "1e9"], capsys)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


MEASURES = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts commands in the background with it ignored
from sewsnn.cli import main
from sewsnn.experiments import rates
def measure(*words):
    print("measuring", flush=True)
    time.sleep(120)
rates.measure_blocks = measure
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_while_it_measures_leaves_nothing(tmp_path, trained):
    def start(output):
        words = ["analyze", "rates", str(trained), "--output", str(tmp_path / output / "deeper")]
        command = [sys.executable, "-c", MEASURES, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **PROCESS)

    processes = {number: start(number.name) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, process in processes.items():
        assert process.stdout.readline() == "measuring\n"
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
        code = 130 if number == signal.SIGINT else -number
        assert process.returncode == code and "Traceback" not in err, err
    assert not list(tmp_path.iterdir())
