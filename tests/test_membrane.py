"""Membrane potentials over time: the recording, the statistics of fresh networks, and ``sewsnn analyze membrane``."""

import csv

import every_kind
import pytest
import small_run
import torch
from cases import current
from every_kind import NODES
from runs import CONFIG
from torch import nn

from sewsnn.analysis.calibration import calibrate
from sewsnn.analysis.potentials import record
from sewsnn.cli import main
from sewsnn.layers import BNNeuron
from sewsnn.models import create_model
from sewsnn.neuron import IFNode, LIFNode

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ["--blocks", "[1]", "--widths", "[4]", "--threads", "1"]
SMALL = [*TINY, "--T", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return small_run.make(tmp_path_factory.mktemp("run") / "run")


def net(**options):
    torch.manual_seed(0)
    return create_model(
        "sew_resnet", blocks=[1, 1], widths=[4, 8], stem="small", in_channels=1, num_classes=3, T=4, **options
    )


def loop(x_seq, tau, v_reset):
    """IF (tau None) and LIF, threshold 1, as the equations of the paper say."""
    start = 0.0 if v_reset is None else v_reset
    v, found = torch.full_like(x_seq[0], start), []
    for x in x_seq:
        h = v + x if tau is None else v + (x - (v - start)) / tau
        s = (h >= 1.0).to(x)
        v = h - s if v_reset is None else (1 - s) * h + s * v_reset
        found.append((h, v, s))
    return [torch.stack(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("tau", [None, 2.0])
def test_recording_is_the_loop_of_the_paper(tau, v_reset):
    node = IFNode(v_reset=v_reset) if tau is None else LIFNode(tau=tau, v_reset=v_reset)
    x_seq = current((5, 2, 3, 4, 4))
    found = record(node, x_seq, [""])[""]
    h_seq, v_seq, s_seq = loop(x_seq, tau, v_reset)
    assert s_seq.any() and torch.equal(found.x_seq, x_seq) and torch.equal(found.s_seq, s_seq)
    torch.testing.assert_close(found.h_seq, h_seq, rtol=0, atol=0)
    torch.testing.assert_close(found.v_seq, v_seq, rtol=0, atol=0)
    assert found.v_start == (v_reset or 0.0) and torch.equal(found.threshold, torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NODES)
def test_recording_of_every_kind(name, dtype):
    """The potentials are those that the node stores itself, and h explains them."""
    for settings in every_kind.resets(name):
        node = NODES[name](**settings)
        x_seq = current((6, 2, 5, 3), dtype)
        found = record(node, x_seq, [""])[""]
        node.store_v_seq = True
        s_seq = node(x_seq)
        assert s_seq.any() and torch.equal(found.s_seq, s_seq)
        assert torch.equal(found.v_seq, node.v_seq) and found.v_seq.dtype == found.h_seq.dtype
        silent = found.s_seq == 0
        assert torch.equal(found.h_seq[silent], found.v_seq[silent])
        if node.binary_spikes:
            assert torch.equal(found.s_seq == 1, found.h_seq >= found.threshold)
        assert found.threshold.shape == x_seq.shape[1:]


def test_threshold_of_every_channel():
    node = LIFNode(learn_threshold=True, channels=3)
    with torch.no_grad():
        node.threshold.copy_(torch.tensor([0.5, 1.0, 1.5]))
    found = record(node, current((4, 2, 3, 2, 2)), [""])[""]
    assert torch.equal(found.threshold, torch.tensor([0.5, 1.0, 1.5])[:, None, None].expand(2, 3, 2, 2))
    assert torch.equal(found.s_seq == 1, found.h_seq >= found.threshold)


def test_recording_of_a_network_restores_it():
    model, x = net(), current((2, 1, 8, 8))
    model.layer1[0].sn1.keep_state = True
    model.layer1[0].sn1.store_v = True
    model(x)
    v, modes = model.layer1[0].sn1.v, [module.training for module in model.modules()]
    names = ["layer2.0.sn2", "sn1", "layer1.0.sn1", "sn1"]
    found = record(model, x, names)
    assert list(found) == ["layer2.0.sn2", "sn1", "layer1.0.sn1"]  # each once, in the order of the question
    y = model.eval().bn1(model.conv1(x))
    assert torch.equal(found["sn1"].x_seq, y.expand(4, *y.shape))
    assert found["layer2.0.sn2"].s_seq.shape == (4, 2, 8, 4, 4)
    model.train()
    assert [module.training for module in model.modules()] == modes and model.layer1[0].sn1.v is v
    assert not any(module._forward_hooks for module in model.modules())


def test_recording_in_single_step_mode():
    node, x_seq = IFNode(step_mode="s"), current((4, 2, 3))

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = node

        def forward(self, x_seq):
            return torch.stack([self.node(x) for x in x_seq])

    found = record(Steps(), x_seq, ["node"])["node"]
    expected = record(IFNode(), x_seq, [""])[""]
    assert all(torch.equal(a, b) for a, b in zip(found[:4], expected[:4], strict=True))
    node.step_mode = "m"
    node.keep_state = False
    with pytest.raises(ValueError, match="called the neuron layer node 4 times"):
        record(Steps(), x_seq[:, None], ["node"])


def test_recording_of_merged_batches():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = IFNode()

        def forward(self, x_seq):
            return self.node(x_seq.flatten(0, 1), T=len(x_seq))

    x_seq = current((4, 2, 3))
    assert torch.equal(record(Merged(), x_seq, ["node"])["node"].x_seq, x_seq)


def test_recording_refuses():
    model, x = net(), current((1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"unknown neuron layer 'layer1.0.sn3'; the nearest are layer1.0.sn[12], lay"):
        record(model, x, ["sn1", "layer1.0.sn3"])
    with pytest.raises(ValueError, match="unknown neuron layer 'conv1'"):
        record(model, x, ["conv1"])
    with pytest.raises(TypeError, match="list of names"):
        record(model, x, "sn1")
    model.unused = IFNode()
    with pytest.raises(ValueError, match="did not call the neuron layer unused"):
        record(model, x, ["unused"])

    class Other(IFNode):
        def forward(self, x, T=None):
            return 1 - super().forward(x, T)

    model.layer1[0].sn1 = Other()
    with pytest.raises(RuntimeError, match=r"layer1.0.sn1 \(Other\) sent other spikes"):
        record(model, x, ["layer1.0.sn1"])
    assert not any(module._forward_hooks for module in model.modules())


# ---- calibrate


def test_calibrate_takes_the_mean_statistics():
    model, batches = net(), [current((6, 1, 8, 8), seed=i) for i in range(3)]
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    assert calibrate(model, iter(batches)) == 3
    with torch.no_grad():
        z = [model.conv1(x).transpose(0, 1).flatten(1) for x in batches]
    for found, expected in (
        (model.bn1.running_mean, torch.stack([one.mean(1) for one in z]).mean(0)),
        (model.bn1.running_var, torch.stack([one.var(1) for one in z]).mean(0)),
    ):
        torch.testing.assert_close(found, expected, rtol=6 * 64 * 1.2e-7, atol=6 * 64 * 6e-8)  # a sum of 6 * 64 values
    assert model.bn1.num_batches_tracked == 3
    assert [module.training for module in model.modules()] == modes
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta


def test_calibrate_uses_the_batch_statistics_in_every_norm():
    """Later norms see what the earlier ones give in training, as plain modules compute it."""
    model, plain, batches = net(), net(fused=False), [current((6, 1, 8, 8), seed=i) for i in range(2)]
    calibrate(model, batches)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    for x in batches:
        plain.train()(x)
    for (name, found), (_, expected) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_calibrate_changes_bn_neuron_and_nothing_else():
    layer = nn.Sequential(nn.Dropout(0.5), BNNeuron(3), nn.InstanceNorm2d(3, track_running_stats=True))
    x = current((4, 2, 3, 5, 5))
    calibrate(layer[:2], [x])
    torch.testing.assert_close(layer[1].running_mean, x.mean((0, 1, 3, 4)))  # without dropout
    assert layer[2].running_mean.eq(0).all()


def test_calibrate_leaves_the_statistics_on_an_error():
    model = net()
    with pytest.raises(ValueError, match="batches is empty"):
        calibrate(model, [])
    before = {name: value.clone() for name, value in model.named_buffers()}
    with pytest.raises(RuntimeError):
        calibrate(model, [current((6, 1, 8, 8)), current((6, 2, 8, 8))])
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.training and model.bn1.momentum == 0.1


# ---- the command


def analyze(source, output, *words):
    with small_run.same_threads():
        return main(["analyze", "membrane", str(source), "--output", str(output), *words])


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def documented(text, name):
    """The columns of a data file that the report describes."""
    part = text.partition(f"[{name}]({name}):\n\n")[2].partition("\n\n")[0]
    return [line.split("`")[1] for line in part.splitlines()]


def test_command_on_a_fresh_network(tmp_path):
    output = tmp_path / "new" / "report"
    assert analyze(CONFIG, output, *SMALL) == 0
    layers = ["sn1", "layer1.0.sn1", "layer1.0.sn2"]
    figures = [
        f"membrane-{kind}-{layer}.{form}"
        for kind in ("potential", "raster")
        for layer in layers
        for form in ("png", "svg")
    ]
    data = ["membrane-potentials.csv", "membrane-raster.csv"]
    assert small_run.names(output) == sorted([*figures, *data, "membrane.md"])
    text = (output / "membrane.md").read_text()
    assert "batch norm has the statistics of 8 training batches" in text
    assert "test sample 0 of digits, class 7" in text and "200 of 256, at even distances" in text
    for name in data:
        assert documented(text, name) == list(rows(output / name)[0])
    assert all(f"]({name})" in text for name in [*data, *(f for f in figures if f.endswith(".png"))])
    assert "![Spikes of neurons in layer layer1.0.sn1, test sample 0 of digits, class 7](membrane-raster-lay" in text
    assert "| layer | neurons | never fired | fired in every time-step | rate |" in text


def test_numbers_of_the_command(tmp_path, trained):
    """The CSV files hold the equations of IF, and the raster plot holds the spikes of every drawn neuron."""
    assert analyze(trained, tmp_path, "--layers", "sn1, layer1.0.sn1,sn1", "--neurons", "5", "--sample", "359") == 0
    found = rows(tmp_path / "membrane-potentials.csv")
    neurons = list(dict.fromkeys((row["layer"], row["channel"], row["y"], row["x"]) for row in found))
    assert sum(layer == "sn1" for layer, *_ in neurons) == 5 and {layer for layer, *_ in neurons} == {
        "sn1",
        "layer1.0.sn1",
    }
    raster = {(row["layer"], int(row["neuron"]), int(row["t"])) for row in rows(tmp_path / "membrane-raster.csv")}
    drawn = {i * 256 // 200 for i in range(200)}
    assert {neuron for _, neuron, _ in raster} <= drawn and raster
    for name in neurons:
        own = [row for row in found if (row["layer"], row["channel"], row["y"], row["x"]) == name]
        assert [row["t"] for row in own] == ["1", "2"]
        index = (int(name[1]) * 8 + int(name[2])) * 8 + int(name[3])
        v = 0.0
        for row in own:
            h, s = float(row["h"]), float(row["spike"])
            assert h == pytest.approx(v + float(row["input"]), abs=1e-6) and s == (h >= 1)
            v = float(row["v"])
            assert v == (0.0 if s else h)
            if index in drawn:
                assert ((name[0], index, int(row["t"])) in raster) == bool(s)
    text = (tmp_path / "membrane.md").read_text()
    assert f"weights: of `{trained}`; the network answers class" in text
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".md"}
    assert analyze(trained, tmp_path, "--layers", "sn1,layer1.0.sn1", "--neurons", "5", "--sample", "359") == 0
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())  # the same in every run


def test_many_neurons_and_a_silent_layer(tmp_path):
    """With a threshold that only the stem reaches, the silent layer shows the neurons that came closest to it."""
    words = [*TINY, "--T", "16", "--model.neuron.v_threshold", "20", "--layers", "sn1,layer1.0.sn2"]
    assert analyze(CONFIG, tmp_path, *words, "--neurons", "7") == 0
    text = (tmp_path / "membrane.md").read_text()
    assert "| layer1.0.sn2 | 256 | 256 (100.00 %) | 0 (0.00 %) | 0.0000 |" in text
    assert "No neuron of this layer fired." in text
    assert {"membrane-potential-sn1-1.png", "membrane-potential-sn1-2.png"} <= set(small_run.names(tmp_path))


BAD = {
    "unknown layer": (["--layers", "sn1,layer1.0.sn9"], "unknown neuron layer 'layer1.0.sn9'; the nearest are layer1"),
    "empty name": (["--layers", "sn1,,"], "--layers must be names separated by commas"),
    "sample": (["--sample", "360"], "--sample must be 0 to 359: the test set has 360 samples, got 360"),
    "neurons": (["--neurons", "0"], "--neurons must be from 1 to 64"),
    "silent": (["--model.neuron.v_threshold", "1e9"], "no neuron of sn1, layer1.0.sn1, layer1.0.sn2 fired for test"),
    "no file": (["--weights", "/nowhere.pt"], "/nowhere.pt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_nothing_behind(case, tmp_path, capsys):
    words, message = BAD[case]
    error = small_run.error_of(
        ["analyze", "membrane", CONFIG, "--output", tmp_path / "a" / "b", *SMALL, *words], capsys
    )
    assert message in error and not list(tmp_path.iterdir())


def test_weights_of_another_network(tmp_path, capsys, trained):
    words = ["--weights", trained / small_run.CHECKPOINT, "--blocks", "[1]", "--widths", "[8]", "--T", "2"]
    error = small_run.error_of(["analyze", "membrane", CONFIG, "--output", tmp_path / "a", *words], capsys)
    assert small_run.CHECKPOINT in error and not list(tmp_path.iterdir())


def test_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    error = small_run.error_of(["analyze", "membrane", CONFIG, "--output", tmp_path / "file", *SMALL], capsys)
    assert "file" in error and small_run.names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "kept"
