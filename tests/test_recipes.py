"""configs/ has a file for every row of Tables S1, S2 and S3 of the supplement, and each runs on generated data."""

import json
from pathlib import Path

import pytest
import torch
from thorough import THOROUGH

from sewsnn.cli import main
from sewsnn.data import create_data
from sewsnn.models.published import published
from sewsnn.surrogate import ATan
from sewsnn.train import build
from sewsnn.train.config import load_config

ROOT = Path(__file__).parent.parent / "configs"
RECIPES = [path for path in sorted(ROOT.rglob("*.yaml")) if path.parent.name not in ("configs", "analysis")]


def of(folder: str):
    return {path.stem: load_config(path) for path in RECIPES if path.parent.name == folder}


# Of the published networks (torchvision's ResNets have as many).
PARAMETERS = {
    f"{kind}_resnet{depth}": count
    for kind in ("sew", "spiking")
    for depth, count in ((34, 21_797_672), (101, 44_549_160), (152, 60_192_808))
}
# Depth 50 covers the layers of 101 and 152, and depths 18 and 50 cover both kinds of blocks.
TRAINED = [p for p in RECIPES if THOROUGH or not p.stem.endswith(("34", "101", "152"))]


@pytest.mark.parametrize("path", [p for p in RECIPES if p not in TRAINED], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_deep_networks_are_built(path):
    """Checks only shapes: the network of the configuration from image to logits, without a training step."""
    config = load_config(path)
    with torch.device("meta"):
        model = build.build_model(config, create_data("imagenet", batch_size=1, seed=0, generated=1))
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[config.model.name]


@pytest.mark.parametrize("path", TRAINED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_runs(path, tmp_path, capsys):
    """One step and one evaluation, with a small T but the real network and image size."""
    sequences = "dvs" in path.parent.name
    T = 3 if sequences else 2
    words = ["--data.generated", "2", "--batch_size", "2", "--epochs", "1", "--amp", "off", "--model.T", str(T)]
    words += ["--T_train", "2"] if load_config(path).data.T_train else []
    words += ["--warmup_epochs", "0"] if load_config(path).schedule.warmup_epochs else []
    assert main(["train", str(path), "--output", str(tmp_path / "run"), *words]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["generated_data"] and result["epochs"] == 1
    assert "the data was generated, so this accuracy has no meaning" in capsys.readouterr().out


def test_networks_on_images_run_in_channels_last():
    """On a CPU the faster memory format, with the same results to rounding (docs/training.md)."""
    assert all(load_config(path).train.channels_last for path in RECIPES)


def test_table_s1_imagenet():
    configs = of("imagenet")
    for kind in ("sew", "spiking"):
        for depth in (18, 34, 50, 101, 152):
            c = configs[f"{kind}_resnet{depth}"]
            assert (c.optimizer.lr, c.schedule.name, c.train.epochs, c.data.batch_size, c.model.T) == (
                0.1,
                "cosine",
                320,
                32,
                4,
            )
            assert c.model.name == f"{kind}_resnet{depth}" and c.model.zero_init_residual == (kind == "spiking")
    common(configs.values())


def test_table_s1_and_s2_dvs_gesture():
    configs = of("dvs128_gesture")
    rates = {"sew_add": 0.001, "sew_and": 0.03, "sew_iand": 0.063, "spiking": 0.1, "plain": 0.005}
    assert {name: c.optimizer.lr for name, c in configs.items()} == rates
    for name, c in configs.items():
        schedule = (c.schedule.name, c.schedule.step_size, c.schedule.gamma, c.train.epochs)
        assert schedule == ("step", 64, 0.1, 192)
        assert (c.data.batch_size, c.model.T, c.data.T_train, c.model.neuron.type) == (16, 16, 12, "PLIF")
        kind, _, connect_f = name.partition("_")
        assert c.model.name == f"{kind}_7b_net" and (kind != "sew" or c.model.connect_f == connect_f.upper())
    common(configs.values())


def test_table_s1_cifar10_dvs():
    configs = of("cifar10_dvs")
    assert sorted(c.model.T for c in configs.values()) == [4, 8, 16]
    for c in configs.values():
        assert (c.optimizer.lr, c.schedule.name, c.train.epochs, c.data.batch_size) == (0.01, "cosine", 64, 16)
        assert (c.model.name, c.model.connect_f, c.data.T_train) == ("sew_wide_7b_net", "ADD", 0) and c.data.drop_last
    common(configs.values())


def test_table_s3():
    found = {(c.model.name, c.model.neuron.surrogate) for c in of("cifar10").values()}
    names = ("sew_cifar10_net", "spiking_cifar10_net")
    assert found == {(name, surrogate) for name in names for surrogate in ("ATan", "Rectangular", "Constant")}
    assert {c.model.neuron.surrogate_parameter for c in of("cifar10").values()} == {2.0, 1.0}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_published_results_are_those_of_the_table(path):
    """The published result in a configuration is also in sewsnn.models.published."""
    config = load_config(path)
    if path.parent.name == "modern":
        assert config.published.test_accuracy is None
        return
    if path.stem == "spiking_resnet18_unit_gradient":
        assert config.published.test_accuracy is None and "will not converge" in config.published.source
        return
    settings = {"connect_f": config.model.connect_f} if config.model.name.startswith("sew") else {}
    if "cifar10_net" in config.model.name:
        settings["surrogate"] = config.model.neuron.surrogate
    else:
        settings["T"] = config.model.T
    (best,) = published(config.model.name, epoch="best", **settings)
    assert best.accuracy == config.published.test_accuracy
    last = [result.accuracy for result in published(config.model.name, epoch="last", **settings)]
    assert last == [config.published.last_test_accuracy][: len(last)] and len(last) == ("imagenet" in str(path.parent))


def common(configs):
    """A.1: SGD with momentum 0.9, mixed precision; V_th = 1, V_reset = 0, ArcTan of alpha = 2, detached reset."""
    for c in configs:
        assert (c.optimizer.name, c.optimizer.momentum, c.optimizer.weight_decay) == ("sgd", 0.9, 0.0)
        assert c.train.amp == "fp16" and c.seed == 2020
        n = c.model.neuron
        assert (n.v_threshold, n.v_reset, n.surrogate, n.detach_reset) == (1.0, 0.0, "ATan", True)
        assert n.surrogate_parameter is None and ATan().parameter == 2.0


def test_zero_one_gradient_recipe():
    """A.5: V_th = 1/2 and sigma'(x) = (1 + pi^2 / 4) / (1 + (pi x)^2) in the last neuron of each block, no other."""
    from sewsnn.models import BasicBlock
    from sewsnn.neuron import IFNode
    from sewsnn.surrogate import UnitATan

    config = of("imagenet")["spiking_resnet18_unit_gradient"]
    model = build.build_model(config, create_data("imagenet", batch_size=1, seed=0, generated=1))
    last = [m.sn2 for m in model.modules() if isinstance(m, BasicBlock)]
    others = [m for m in model.modules() if isinstance(m, IFNode) and not any(m is n for n in last)]
    assert len(last) == 8 and all(n.v_threshold == 0.5 and n.surrogate_function == UnitATan(0.5) for n in last)
    assert len(others) == 9 and all(n.v_threshold == 1.0 and n.surrogate_function == ATan(2.0) for n in others)
