"""``sewsnn analyze rates`` and ``block_rates`` beside networks written out in plain PyTorch, and wrong input."""

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
from runs import CONFIG, PROCESS, ROOT
from small_run import CHECKPOINT, names
from torch import nn
from torch.nn import functional as F

from sewsnn import models, neuron
from sewsnn.analysis.blocks import BlockRate, block_rates
from sewsnn.cli import main
from sewsnn.errors import DataError
from sewsnn.experiments import sources
from sewsnn.experiments.rate_figures import Rates, add_block_rates
from sewsnn.experiments.report import Report
from sewsnn.experiments.sources import Opened
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


# ---- the networks in plain PyTorch


class Plain:
    """A network from its state dict: conv2d, batch_norm, and a loop over the time-steps. Nothing here is sewsnn's.

    Attributes:
        blocks: name of the block -> {"S": [a tensor per batch], "A": [...], "O": [...]}; a Spiking block has no A.
        spikes: name of the neuron layer -> its spikes, a tensor per batch.
        inputs: name of the convolution or linear layer -> what it reads, a tensor per batch.
        macs: its multiply-accumulates for one image.
    """

    def __init__(self, state, residual="sew", connect_f="ADD"):
        self.state, self.residual, self.connect_f = state, residual, connect_f
        self.blocks, self.spikes, self.inputs, self.macs = {}, {}, {}, {}

    def conv_bn(self, conv, bn, x_seq, stride=1):
        weight, (mean, var, gain, bias) = self.state[f"{conv}.weight"], self.of_norm(bn)
        self.inputs.setdefault(conv, []).append(x_seq)
        z = F.conv2d(x_seq.flatten(0, 1), weight, stride=stride, padding=weight.shape[-1] // 2)
        self.macs[conv] = z[0].numel() * weight[0].numel()
        return F.batch_norm(z, mean, var, gain, bias, eps=1e-5).unflatten(0, x_seq.shape[:2])

    def of_norm(self, bn):
        return [self.state[f"{bn}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]

    def fire(self, name, x_seq):
        v, s_seq = torch.zeros_like(x_seq[0]), []
        leak = self.state.get(f"{name}.w")
        for x in x_seq:
            h = v + x if leak is None else v + (x - v) * leak.sigmoid()
            s_seq.append((h >= 1).to(h))
            v = h * (1 - s_seq[-1])
        self.spikes.setdefault(name, []).append(torch.stack(s_seq))
        return self.spikes[name][-1]

    def block(self, name, s_seq, stride=1):
        convs = 3 if f"{name}.conv3.weight" in self.state else 2
        x = s_seq
        for i in range(1, convs + 1):
            strided = i == (2 if convs == 3 else 1)  # the 3x3 convolution that comes first
            x = self.conv_bn(f"{name}.conv{i}", f"{name}.bn{i}", x, stride if strided else 1)
            if i < convs:
                x = self.fire(f"{name}.sn{i}", x)
        shortcut = s_seq
        if f"{name}.downsample.0.weight" in self.state:
            shortcut = self.conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", s_seq, stride)
            if self.residual == "sew":
                shortcut = self.fire(f"{name}.downsample_sn", shortcut)
        found = self.blocks.setdefault(name, {"S": [], "A": [], "O": []})
        found["S"].append(s_seq)
        if self.residual == "spiking":
            o = self.fire(f"{name}.sn{convs}", x + shortcut)
        else:
            a = o = self.fire(f"{name}.sn{convs}", x)
            found["A"].append(a)
            if self.residual == "sew":
                o = {"ADD": a + shortcut, "AND": a * shortcut, "IAND": (1 - a) * shortcut}[self.connect_f]
        found["O"].append(o)
        return o

    def classify(self, s_seq):
        self.inputs.setdefault("fc", []).append(s_seq.mean((-2, -1)).mean(0))
        self.macs["fc"] = self.state["fc.weight"].numel()

    def resnet(self, x, T):
        """A ResNet with the small stem, for a still image."""
        z = self.conv_bn("conv1", "bn1", x[None])
        s_seq = self.fire("sn1", z.expand(T, *z.shape[1:]))
        for stage in range(1, 9):
            for i in range(9):
                if f"layer{stage}.{i}.conv1.weight" in self.state:
                    s_seq = self.block(f"layer{stage}.{i}", s_seq, 2 if stage > 1 and i == 0 else 1)
        self.classify(s_seq)

    def pooled(self, x_seq):
        """A network with max pooling after each stage, for a sequence; O^l is before the pooling."""
        s_seq = x_seq
        for stage in range(1, 9):
            if f"layer{stage}.conv.weight" in self.state:
                s_seq = self.fire(f"layer{stage}.sn", self.conv_bn(f"layer{stage}.conv", f"layer{stage}.bn", s_seq))
            for i in range(9):
                if f"layer{stage}.blocks.{i}.conv1.weight" in self.state:
                    s_seq = self.block(f"layer{stage}.blocks.{i}", s_seq)
            if f"layer{stage}.blocks.0.conv1.weight" in self.state:
                s_seq = F.max_pool2d(s_seq.flatten(0, 1), 2).unflatten(0, s_seq.shape[:2])
        self.classify(s_seq)


def rate(tensors):
    """Spikes per neuron, time-step and sample; None without tensors."""
    return sum(float(t.double().sum()) for t in tensors) / sum(t.numel() for t in tensors) if tensors else None


def expected_blocks(plain):
    return {
        name: (*(rate(found[key]) for key in "SAO"), rate([(o != 0).double() for o in found["O"]]))
        for name, found in plain.blocks.items()
    }


FORMS = {
    "ADD": ("sew_resnet", {"connect_f": "ADD"}),
    "AND": ("sew_resnet", {"connect_f": "AND"}),
    "IAND": ("sew_resnet", {"connect_f": "IAND"}),
    "spiking": ("spiking_resnet", {}),
    "plain": ("plain_resnet", {}),
    "bottleneck": ("sew_resnet", {"bottleneck": True}),
    "spiking bottleneck": ("spiking_resnet", {"bottleneck": True}),
    "PLIF": ("sew_resnet", {"connect_f": "IAND", "neuron": neuron.ParametricLIFNode}),
    "pooled": ("sew_7b_net", {"connect_f": "ADD"}),
    "pooled IAND": ("sew_7b_net", {"connect_f": "IAND"}),
    "pooled spiking": ("spiking_7b_net", {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_rates_are_those_of_plain_pytorch(form):
    """In float64 no potential is so near the threshold that rounding decides, so the rates are equal."""
    name, options = FORMS[form]
    torch.manual_seed(2)
    pooled = name.endswith("7b_net")
    size = {"in_channels": 2, "num_classes": 3, "T": 3, "blocks": [2, 1], "widths": [4, 6]}
    net = models.create_model(name, **size, **({} if pooled else {"stem": "small"}), **options).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 1.0, 3.0),
                (module.bias, -0.2, 1.2),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.2, 2.0),
            ):
                nn.init.uniform_(values, low, high)
    shapes = [(3, 4, 2, 12, 12), (3, 2, 2, 12, 12)] if pooled else [(4, 2, 7, 6), (2, 2, 7, 6)]
    batches = [torch.rand(shape, dtype=torch.float64) * 2 for shape in shapes]
    plain = Plain(net.state_dict(), name.partition("_")[0], options.get("connect_f", "ADD"))
    for x in batches:
        plain.pooled(x) if pooled else plain.resnet(x, 3)
    found = block_rates(net, batches)
    assert {one.name: (one.S, one.A, one.O, one.active) for one in found} == expected_blocks(plain)
    assert len(found) == 3 and all(0.01 < one.S < 2 and 0 < one.active < 1 for one in found)
    assert all((one.A is None) == name.startswith("spiking") for one in found)
    if pooled:  # the maximum over 2 x 2 would be larger
        stage = plain.blocks["layer2.blocks.0"]["O"]
        assert rate([F.max_pool2d(o.flatten(0, 1), 2) for o in stage]) > 1.2 * found[2].O


# ---- the command: the same numbers in its data files


def analyze(source, output, *words):
    folders = source if isinstance(source, list) else [source]
    with small_run._same_threads():
        return main([str(word) for word in ("analyze", "rates", *folders, "--output", output, *words)])


def rows(folder, name):
    with open(folder / f"rates-{name}.csv") as file:
        return list(csv.DictReader(file))


def networks_in(folder):
    return list(dict.fromkeys(row["network"] for row in rows(folder, "blocks")))


def check_report(folder):
    """All files exist, the report explains every column, figures are figures."""
    assert names(folder) == FILES
    text = (folder / "rates.md").read_text()
    for name in ("blocks", "layers", "operations"):
        part = text.partition(f"[rates-{name}.csv](rates-{name}.csv):\n\n")[2].partition("\n\n")[0]
        assert [line.split("`")[1] for line in part.splitlines()] == list(rows(folder, name)[0])
        assert all(line.startswith("- `") and len(line.partition("`: ")[2]) > 10 for line in part.splitlines())
    assert "](rates-blocks.png)\n" in text
    assert (folder / "rates-blocks.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (folder / "rates-blocks.svg").read_bytes().startswith(b"<?xml") and "nan" not in text
    return text


def on_a_grid(state):
    """Weights with which no potential comes near the threshold, so that float32 gives the spikes of exact arithmetic.

    Inputs are multiples of 1/16, spikes are whole numbers, and weights are multiples of 1/4: a convolution gives
    multiples of 1/64. Each norm adds 1/256, so that after 1, 2 or 3 time-steps a potential is at least 1/256 away from
    the threshold 1. The scale of the norm, 1 / sqrt(1 + 1e-5), moves it by less as long as it is below 300.
    """
    torch.manual_seed(2)
    for name, values in state.items():
        if values.dim() == 4:
            state[name] = torch.randint(-2, 4, values.shape) / 4.0
        elif name.endswith(("running_mean", "running_var")):
            state[name] = torch.full_like(values, float(name.endswith("var")))
        elif ".bn" in f".{name}" or "downsample.1" in name:
            state[name] = torch.full_like(values, 1.0 if name.endswith("weight") else 1 / 256)
    return state


def weights_for(config_file, words, folder):
    """Writes weights on the grid for a configuration; returns their path, the state dict and the test batches."""
    overrides = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))
    config = load_config(config_file, overrides)
    data = build.build_data(config)
    state = on_a_grid(build.build_model(config, data).state_dict())
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt", state, [data.to_float(x) for x, _ in data.test_batches()]


CASES = {
    "ADD": [],
    "AND": ["--connect_f", "AND"],
    "IAND": ["--connect_f", "IAND"],
    "spiking": ["--model.name", "spiking_resnet"],
    "events": [],
}


@pytest.mark.parametrize("case", CASES)
def test_data_files_are_those_of_plain_pytorch(case, tmp_path):
    config, words = (EVENTS, EVENT_SIZE) if case == "events" else (CONFIG, SIZE)
    words, T = [*words, *CASES[case]], 3
    weights, state, batches = weights_for(config, words, tmp_path)
    if case != "events":
        batches, words = batches[:2], [*words, "--analysis.batches", "2"]
    assert analyze(config, tmp_path / "out", *words, "--weights", weights) == 0
    text = check_report(tmp_path / "out")
    plain = Plain(state, "spiking" if case == "spiking" else "sew", case if case in ("AND", "IAND") else "ADD")
    for x in batches:
        plain.pooled(x) if case == "events" else plain.resnet(x, T)
    assert max(float(x.abs().max()) for of_layer in plain.inputs.values() for x in of_layer) < 20

    found = rows(tmp_path / "out", "blocks")
    assert [row["block"] for row in found] == ["1", "2", "3"] and len(networks_in(tmp_path / "out")) == 1
    read = {
        row["name"]: tuple(float(row[key]) if row[key] else None for key in ("S", "A", "O", "active")) for row in found
    }
    assert read == expected_blocks(plain) and all(min(s, o) > 0.001 for s, _, o, _ in read.values())
    layers = {row["layer"]: float(row["rate"]) for row in rows(tmp_path / "out", "layers")}
    assert layers == {name: rate(spikes) for name, spikes in plain.spikes.items()}

    images = sum(x.shape[1] if case == "events" else len(x) for x in batches)
    energy = 0.0
    operations = {row["layer"]: row for row in rows(tmp_path / "out", "operations")}
    assert operations.keys() == plain.inputs.keys()
    for name, row in operations.items():
        x, macs, weight = plain.inputs[name], plain.macs[name], state[f"{name}.weight"]
        assert int(row["macs"]) == macs and row["kind"] == ("Linear" if name == "fc" else "Conv2d")
        if name in ("fc", "conv1"):  # both read real values, once for each image
            assert (row["runs"], row["input_rate"], row["synops"]) == ("1.0", "", "")
            assert float(row["energy_pj"]) == pytest.approx(4.6 * macs, rel=1e-12)
        else:  # an addition for each spike and each neuron that reads it: a convolution with ones counts them
            stride = 2 if name in ("layer2.0.conv1", "layer2.0.downsample.0") else 1
            ones, around = torch.ones_like(weight), weight.shape[-1] // 2
            synops = sum(
                float(F.conv2d(s.flatten(0, 1), ones, stride=stride, padding=around).double().sum()) for s in x
            )
            assert float(row["runs"]) == T and float(row["input_rate"]) == rate(x)
            assert float(row["synops"]) == synops / images
            assert float(row["energy_pj"]) == pytest.approx(0.9 * synops / images, rel=1e-12)
        energy += float(row["energy_pj"])
    ratio = energy / (4.6 * sum(plain.macs.values()))
    assert f" | {energy / 1e6:.3f} µJ | {ratio:.2f} |" in text
    mean = sum(layers.values()) / len(layers)
    assert f"| {mean:.4f} | " in text


def test_silent_and_saturated_layers_are_named(tmp_path):
    weights, state, _ = weights_for(CONFIG, SIZE, tmp_path)
    state["layer1.0.bn1.bias"].fill_(-1000.0)
    state["layer2.0.bn2.bias"].fill_(1000.0)
    torch.save(state, weights)
    assert analyze(CONFIG, tmp_path / "out", *SIZE, "--weights", weights) == 0
    text = check_report(tmp_path / "out")
    layers = {row["layer"]: row for row in rows(tmp_path / "out", "layers")}
    assert (layers["layer1.0.sn1"]["rate"], layers["layer2.0.sn2"]["rate"]) == ("0.0", "1.0")
    found = {"silent": [], "saturated": [], "": []}
    for name, row in layers.items():
        value = float(row["rate"])
        assert row["state"] == ("silent" if value < 0.001 else "saturated" if value > 0.95 else "")
        found[row["state"]].append(f"`{name}` ({value:.2g})")
    for state, limit in (("silent", "below 0.001"), ("saturated", "above 0.95")):
        share = f"{len(found[state])} of {len(layers)} neuron layers are {state} (rate {limit})"
        assert f"\n**digits**: {share}: {', '.join(found[state])}.\n" in text
    assert len(found[""]) > 3


# ---- the command: its sources


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
    assert analyze(CONFIG, out, *words) == 0
    text = check_report(out)
    assert networks_in(out) == ["ADD", "AND", "IAND"]
    assert "weights: random; batch norm has the statistics of 8 training batches" in text
    assert "data: 2 of 12 batches of the test set of digits" in text
    o = {name: [float(row["O"]) for row in rows(out, "blocks") if row["network"] == name] for name in networks_in(out)}
    first = [row for row in rows(out, "blocks") if row["block"] == "1"]
    assert len({(row["S"], row["A"]) for row in first}) == 1, "all have the same first layers"
    s, a = float(first[0]["S"]), float(first[0]["A"])
    assert o["ADD"][0] == pytest.approx(s + a, rel=1e-15) and 0 < o["AND"][0] < s
    assert o["IAND"][0] + o["AND"][0] == pytest.approx(s, rel=1e-15)
    lowest = sum(o["AND"][i] <= min(o["ADD"][i], o["IAND"][i]) for i in range(3))
    answer = "Holds" if lowest == 3 else "**Does not hold**"
    a_l = {name: [float(row["A"]) for row in rows(out, "blocks") if row["network"] == name] for name in o}
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
        assert analyze(CONFIG, tmp_path / name, *TINY, "--analysis.batches", "1", "--model.name", name) == 0
        text = check_report(tmp_path / name)
        assert networks_in(tmp_path / name) == ["digits"] and "What is seen" not in text
        assert all((row["A"] == "") == (name == "spiking_resnet") for row in rows(tmp_path / name, "blocks"))


def test_a_run_and_its_weights(tmp_path, trained):
    """Both sources give the same numbers; the report names the file."""
    assert analyze(trained, tmp_path / "a", "--threads", "1") == 0
    assert analyze(CONFIG, tmp_path / "b", *TINY, "--weights", trained / CHECKPOINT) == 0
    words = [*TINY, "--model.weights", trained / CHECKPOINT]
    assert analyze(CONFIG, tmp_path / "c", *words) == 0
    for name in ("blocks", "layers", "operations"):
        assert rows(tmp_path / "a", name) == rows(tmp_path / "b", name) == rows(tmp_path / "c", name)
    files = {"a": trained, "b": trained / CHECKPOINT, "c": trained / CHECKPOINT}
    for folder, file in files.items():
        text = check_report(tmp_path / folder)
        assert f"weights: of `{file}`\n" in text and "data: test set of digits\n" in text
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("rates-*")}
    assert analyze(trained, tmp_path / "a", "--threads", "1") == 0
    assert all((tmp_path / "a" / name).read_bytes() == data for name, data in before.items())


def test_several_runs_are_named(tmp_path, trained, monkeypatch):
    runs = [run_at(trained, tmp_path / f"run-{c}", connect_f=c) for c in ("IAND", "ADD", "AND")]
    assert analyze(runs, tmp_path / "out") == 0
    text = check_report(tmp_path / "out")
    assert networks_in(tmp_path / "out") == ["IAND", "ADD", "AND"] and "## What is seen" in text
    assert f"weights: of `{runs[0]}`, `{runs[1]}`, `{runs[2]}`\n" in text
    svg = (tmp_path / "out" / "rates-blocks.svg").read_text()
    assert all(f"<!-- {name} -->" in svg for name in ("IAND", "ADD", "AND"))
    other = run_at(trained, tmp_path / "run-spiking", name="spiking_resnet")
    assert analyze([*runs, other], tmp_path / "out") == 0
    assert networks_in(tmp_path / "out") == ["run-IAND", "run-ADD", "run-AND", "run-spiking"]
    assert (
        "network: sew_resnet (blocks [1], widths [4]), spiking_resnet (blocks [1], widths [4]), T = 2;"
        in check_report(tmp_path / "out")
    )
    same_name = run_at(trained, tmp_path / "deeper" / "run-ADD", connect_f="ADD")
    assert analyze([runs[1], same_name], tmp_path / "out") == 0
    assert networks_in(tmp_path / "out") == [str(runs[1]), str(same_name)]
    monkeypatch.chdir(runs[1])
    assert analyze([".", "../run-AND", "../run-spiking/"], "report") == 0  # the output is in the folder of a run
    assert networks_in(runs[1] / "report") == ["run-ADD", "run-AND", "run-spiking"]


def test_connections_are_compared_only_if_the_rest_is_the_same(tmp_path, trained):
    """Runs that differ in T as well keep the names of their folders, and there is no statement about them."""
    runs = [run_at(trained, tmp_path / c, connect_f=c, T=2 + (c == "AND")) for c in ("ADD", "AND", "IAND")]
    assert analyze(runs, tmp_path / "out") == 0
    text = check_report(tmp_path / "out")
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
    assert analyze(runs, tmp_path / "out [x]") == 0
    text = check_report(tmp_path / "out [x]")
    table = [line for line in text.splitlines() if line.endswith(" |")]
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in SHOWN]
    assert all(line.replace("\\|", "").count("|") == 8 for line in table)
    assert all(f"\n**{name}**: " in text for name in SHOWN)
    assert networks_in(tmp_path / "out [x]") == [*NAMES[:-2], "\\udcff", "a\\nb"]
    one = run_at(trained, tmp_path / "one", run_name="$x^$ | 1")
    assert analyze(one, tmp_path / "single") == 0
    assert "| \\$x^\\$ \\| 1 | " in check_report(tmp_path / "single")


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
    opened = Opened("", load_config(CONFIG), None, None, False)
    add_block_rates(Drawn(), {name: [Rates(opened, of, {}, None)] for name in labels}, compare=True)
    for of_panel in lines:
        assert len({(line.get_color(), line.get_marker()) for line in of_panel}) == len(labels)


def test_statements_must_hold_for_every_seed(tmp_path):
    def of(seed, *o):
        config = load_config(CONFIG, {"seed": str(seed)})
        blocks = [BlockRate(f"layer1.{i}", 0.5, 0.25, rate, rate) for i, rate in enumerate(o)]
        return Rates(Opened("", config, None, None, False), blocks, {}, None)

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
    assert analyze(trained, tmp_path / "out") == 0
    assert "- left out as damaged: 2 samples\n" in check_report(tmp_path / "out")


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
    with small_run._same_threads():
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
    assert analyze(trained, tmp_path) == 0
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
rates.measure_rates = measure
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
