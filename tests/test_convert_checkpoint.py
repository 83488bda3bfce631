"""``sewsnn convert-checkpoint``."""

import argparse
import errno
import os
import re

import pytest
import torch

from sewsnn import models, neuron
from sewsnn.cli import main
from sewsnn.models.dialects import dialects
from sewsnn.train import checkpoint
from sewsnn.train.config import Config

MODELS = {
    "sew_resnet18": {"num_classes": 3},
    "spiking_resnet18": {"num_classes": 2, "neuron": neuron.ParametricLIFNode, "stem": "small"},
    "sew_resnet": {"blocks": [2, 1, 3], "widths": [4, 8, 6], "bottleneck": True, "in_channels": 1, "num_classes": 7},
    "spiking_7b_net": {"num_classes": 4, "stem_kernel": 3},
    "sew_wide_7b_net": {"in_channels": 3},
    "sew_cifar10_net": {},
}


def read(path, container="model"):
    content = torch.load(path, weights_only=True)
    return content[container] if container else content


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype and torch.equal(value, b[key]), key


def error_of(words, capsys):
    assert main(["convert-checkpoint", *map(str, words)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("sewsnn: error: ")
    return err


@pytest.mark.parametrize("name", MODELS)
def test_all_dialects_into_all(name, tmp_path, capsys):
    """Classes, channels, neurons and sizes are read from the weights."""
    model = models.create_model(name, **MODELS[name])
    forms = list(dialects(model))
    large = name.endswith("18")
    for i, a in enumerate(forms):
        models.save_checkpoint(model, tmp_path / a, a)
        for b in forms[i - 1 : i] or forms[-1:] if large else forms:
            out = tmp_path / f"{a}-{b}"
            words = [str(tmp_path / a), str(out), "--to", b, "--model", name]
            assert main(["convert-checkpoint", *words]) == 0
            assert_same(read(out), models.to_dialect(model, b))
            text = capsys.readouterr().out
            assert (
                f"{len(model.state_dict())} of {len(model.state_dict())} entries" in text
                and f"in dialect {b!r}" in text
            )


def small(**settings):
    return models.create_model("sew_resnet", blocks=[1, 1], widths=[4, 8], num_classes=5, **settings)


@pytest.fixture
def source(tmp_path):
    models.save_checkpoint(small(), tmp_path / "in.pt", "authors")
    return tmp_path / "in.pt"


def test_file_of_sewsnn_train_names_its_model(tmp_path):
    config, model = Config().to_dict(), small(neuron=neuron.ParametricLIFNode, in_channels=1, stem="small")
    config["model"] |= {"name": "sew_resnet", "blocks": [1, 1], "widths": [4, 8], "connect_f": "IAND"}
    rest = dict.fromkeys(checkpoint.KEYS - {"config", "model"})
    checkpoint.save(tmp_path / "checkpoint.pt", {"config": config, "model": model.state_dict(), **rest})
    out = tmp_path / "out.pth"
    assert main(["convert-checkpoint", str(tmp_path / "checkpoint.pt"), str(out), "--to", "authors"]) == 0
    assert_same(read(out), models.to_dialect(model, "authors"))


def test_file_of_the_authors_names_its_model(tmp_path):
    model = models.create_model("sew_resnet18")
    args = argparse.Namespace(model="sew_resnet18", connect_f="AND")
    torch.save({"model": models.to_dialect(model, "authors"), "args": args}, tmp_path / "in.pth")
    words = [str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--to", "torchvision", "--container", ""]
    assert main(["convert-checkpoint", *words]) == 0
    assert_same(read(tmp_path / "out.pth", None), model.state_dict())


def test_values_stay_as_they_are(tmp_path):
    """Values keep their dtype, and num_batches_tracked is missing where it was missing."""
    state = {k: v for k, v in small().double().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "in.pt")
    words = [str(tmp_path / "in.pt"), str(tmp_path / "out.pt"), "--to", "torchvision", "--model", "sew_resnet"]
    assert main(["convert-checkpoint", *words, "--container", "net"]) == 0
    assert_same(read(tmp_path / "out.pt", "net"), state)


def test_nothing_is_overwritten(source, tmp_path, capsys):
    out = tmp_path / "out.pt"
    out.write_text("precious")
    words = [source, out, "--to", "torchvision", "--model", "sew_resnet"]
    assert f"{out} exists already: --force replaces it" in error_of(words, capsys)
    assert out.read_text() == "precious"
    assert main(["convert-checkpoint", *map(str, words), "--force"]) == 0
    assert len(read(out)) == len(small().state_dict())


def test_the_source_stays(source, tmp_path, capsys):
    before = source.read_bytes()
    os.link(source, tmp_path / "link.pt")
    for out in (source, tmp_path / "." / "in.pt", tmp_path / "link.pt"):
        words = [source, out, "--to", "torchvision", "--model", "sew_resnet", "--force"]
        assert "is the file to convert: write the result to another file" in error_of(words, capsys)
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--to", "pytorch", "--model", "sew_resnet"],
            "'sewsnn', 'torchvision', 'authors', 'containers', got 'pytorch'",
        ),
        (["--to", "torchvision"], r"in\.pt does not name its model: --model must be one of plain_7b_net, "),
        (
            ["--to", "torchvision", "--model", "sew_resnet19"],
            r"unknown model 'sew_resnet19' \(nearest: 'sew_resnet18'\)",
        ),
        (
            ["--to", "torchvision", "--model", "sew_resnet18"],
            r"in\.pt does not fit the model .*missing: layer1\.1\.conv1",
        ),
        (
            ["--to", "sewsnn", "--model", "sew_7b_net"],
            r"in\.pt does not fit the model .*layer1\.0\.sn1|not in the model: ",
        ),
    ],
)
def test_what_makes_no_sense(words, message, source, tmp_path, capsys):
    assert re.search(message, error_of([source, tmp_path / "out.pt", *words], capsys))
    assert os.listdir(tmp_path) == ["in.pt"]


def test_event_net_has_no_torchvision_form(tmp_path, capsys):
    models.save_checkpoint(models.create_model("sew_7b_net"), tmp_path / "in.pt")
    words = [tmp_path / "in.pt", tmp_path / "out.pt", "--to", "torchvision", "--model", "sew_7b_net"]
    assert "dialect 'torchvision' has no names for PooledNet" in error_of(words, capsys)
    words[-1] = "sew_resnet"
    assert f"{tmp_path / 'in.pt'} is not of a ResNet: it has no layer1.0.conv1" in error_of(words, capsys)


@pytest.mark.parametrize("value", [torch.ones(()), "text", torch.ones(0, 0, 1, 1)], ids=["number", "text", "empty"])
def test_sizes_that_are_none(value, tmp_path, capsys):
    torch.save({"layer1.0.conv1.weight": value, "fc.weight": torch.ones(2, 2)}, tmp_path / "in.pt")
    words = [tmp_path / "in.pt", tmp_path / "out.pt", "--to", "sewsnn", "--model", "sew_resnet"]
    assert re.search("is not of a ResNet|must be positive", error_of(words, capsys))


def test_args_of_another_model_are_said(tmp_path, capsys):
    """The authors' event networks have other names."""
    state = models.to_dialect(models.create_model("sew_7b_net"), "authors")
    torch.save({"model": state, "args": argparse.Namespace(model="SEWResNet")}, tmp_path / "in.pth")
    words = [tmp_path / "in.pth", tmp_path / "out.pth", "--to", "sewsnn"]
    assert "names the unknown model 'SEWResNet': --model must be one of" in error_of(words, capsys)


def test_bad_files(source, tmp_path, capsys):
    words = ["--to", "torchvision", "--model", "sew_resnet"]
    assert "there is no checkpoint" in error_of([tmp_path / "none.pt", tmp_path / "out.pt", *words], capsys)
    assert f"{tmp_path} is a folder" in error_of([source, tmp_path, *words], capsys)
    assert "cannot write" in error_of([source, tmp_path / "no" / "out.pt", *words], capsys)
    source.write_bytes(source.read_bytes()[:1000])
    assert "in.pt is not a readable checkpoint" in error_of([source, tmp_path / "out.pt", *words], capsys)
    assert os.listdir(tmp_path) == ["in.pt"]


def test_a_full_disk_leaves_nothing_half_written(source, tmp_path, capsys, monkeypatch):
    """An error neither creates a file nor replaces an existing one."""
    out = tmp_path / "out.pt"
    words = [source, out, "--to", "torchvision", "--model", "sew_resnet", "--force"]

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert f"cannot write {out}: No space left on device" in error_of(words, capsys)
    assert os.listdir(tmp_path) == ["in.pt"]
    out.write_text("precious")
    assert "No space left" in error_of(words, capsys)
    assert out.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["in.pt", "out.pt"]


def test_the_dialect_must_be_said():
    with pytest.raises(SystemExit):
        main(["convert-checkpoint", "a", "b"])
