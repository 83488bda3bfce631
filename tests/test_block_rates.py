"""Firing rates of blocks, and the data files of ``sewsnn analyze rates``, beside networks in plain PyTorch."""

import pytest
import torch
from plain_networks import Plain, expected_blocks, rate
from reports import analyze_rates, check_report, networks_in, rows
from runs import CONFIG, ROOT
from torch import nn
from torch.nn import functional as F

from sewsnn import models, neuron
from sewsnn.analysis.blocks import block_rates
from sewsnn.train import build
from sewsnn.train.config import load_config

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = ["--blocks", "[2, 1]", "--widths", "[4, 6]", "--T", "3", "--threads", "1"]
EVENTS = ROOT / "configs" / "dvs128_gesture" / "sew_add.yaml"
EVENT_SIZE = ["--blocks", "[1, 2]", "--widths", "[4, 6]", "--T", "3", "--threads", "1", "--neuron.type", "IF"]
EVENT_SIZE += ["--data.generated", "8", "--frame_size", "16", "--T_train", "0", "--batch_size", "4"]

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
    assert analyze_rates(config, tmp_path / "out", *words, "--weights", weights) == 0
    text = check_report(tmp_path / "out", "rates")
    plain = Plain(state, "spiking" if case == "spiking" else "sew", case if case in ("AND", "IAND") else "ADD")
    for x in batches:
        plain.pooled(x) if case == "events" else plain.resnet(x, T)
    assert max(float(x.abs().max()) for of_layer in plain.inputs.values() for x in of_layer) < 20

    found = rows(tmp_path / "out", "rates-blocks")
    assert [row["block"] for row in found] == ["1", "2", "3"] and len(networks_in(tmp_path / "out")) == 1
    read = {
        row["name"]: tuple(float(row[key]) if row[key] else None for key in ("S", "A", "O", "active")) for row in found
    }
    assert read == expected_blocks(plain) and all(min(s, o) > 0.001 for s, _, o, _ in read.values())
    layers = {row["layer"]: float(row["rate"]) for row in rows(tmp_path / "out", "rates-layers")}
    assert layers == {name: rate(spikes) for name, spikes in plain.spikes.items()}

    images = sum(x.shape[1] if case == "events" else len(x) for x in batches)
    energy = 0.0
    operations = {row["layer"]: row for row in rows(tmp_path / "out", "rates-operations")}
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
    assert analyze_rates(CONFIG, tmp_path / "out", *SIZE, "--weights", weights) == 0
    text = check_report(tmp_path / "out", "rates")
    layers = {row["layer"]: row for row in rows(tmp_path / "out", "rates-layers")}
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
