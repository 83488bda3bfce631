"""The container of the weights in a file: keys, prefixes of wrappers, other formats, dtypes
that are too narrow."""

import argparse
import sys

import pytest
import torch
from test_checkpoints import assert_same_entries, event_net, resnet, scrambled
from torch import nn

from sewsnn import models
from sewsnn.cli import main
from sewsnn.errors import CheckpointError, UserError
from sewsnn.models.dialects import dialects


def loaded(source, make=resnet, **settings):
    model = make()
    return models.load_checkpoint(model, source, **settings), model.state_dict()


@pytest.mark.parametrize("key", ["weights", "model_ema", "state_dict_ema", "net", "ema.model", "config", ""])
def test_what_is_saved_is_read(key, tmp_path):
    model = scrambled(resnet())
    models.save_checkpoint(model, tmp_path / "c.pt", "authors", key)
    report, state = loaded(tmp_path / "c.pt")
    assert report.container == (key or None)
    assert_same_entries(state, model.state_dict())


def test_moving_averages_are_read_where_asked_for():
    """Otherwise the content itself is the weights, in any order of entries."""
    average, model = scrambled(resnet()), scrambled(resnet())
    content = {"model_ema": average.state_dict(), "epoch": 3, "state_dict": model.state_dict()}
    for key, expected in ((None, model), ("model_ema", average), ("state_dict", model)):
        report, state = loaded(content, container=key)
        assert report.container == (key or "state_dict")
        assert_same_entries(state, expected.state_dict())
    del content["state_dict"]
    assert loaded(content)[0].container == "model_ema"


def test_averaged_model():
    """AveragedModel adds a prefix and a counter."""
    average = torch.optim.swa_utils.AveragedModel(scrambled(resnet()))
    for content in ({"model_ema": average.state_dict()}, average.state_dict()):
        report, state = loaded(content)
        assert report.complete
        assert_same_entries(state, average.module.state_dict())


def test_which_container_must_be_said():
    states = {"student": resnet().state_dict(), "teacher": scrambled(resnet()).state_dict(), "epoch": 1}
    with pytest.raises(CheckpointError, match="choose one of 'student', 'teacher' with container"):
        loaded(states)
    assert_same_entries(loaded(states, container="teacher")[1], states["teacher"])
    with pytest.raises(CheckpointError, match="state dict has no tensors by name under 'epoch': it has student, teach"):
        loaded(states, container="epoch")
    with pytest.raises(CheckpointError, match="state dict is not a checkpoint"):
        loaded(states, container="")
    with pytest.raises(TypeError, match="container must be a str or None, got int"):
        loaded(states, container=1)
    with pytest.raises(TypeError, match="container must be a str, got NoneType"):
        models.save_checkpoint(resnet(), "never.pt", container=None)


class Wrapped(nn.Module):
    """A network with own names that begin with DistributedDataParallel's prefix."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_names_of_the_models_own_are_no_prefix(prefix):
    a = Wrapped()
    report, state = loaded({prefix + key: value for key, value in a.state_dict().items()}, Wrapped)
    assert report.complete
    assert_same_entries(state, a.state_dict())


PARTS = {
    "a stage": (resnet, "layer1"),
    "a block": (resnet, "layer2.0"),
    "a convolution": (resnet, "layer1.1.conv1"),
    "a shortcut": (resnet, "layer2.0.downsample"),
    "the classifier": (resnet, "fc"),
    "a pooled stage": (event_net, "layer2"),
    "a pooled block": (event_net, "layer2.blocks.1"),
    "pooled blocks": (event_net, "layer1.blocks"),
}


@pytest.mark.parametrize("part", PARTS)
def test_compiled_parts(part, tmp_path):
    """Loads and saves networks with one compiled module, in every dialect; files have the plain names."""
    make, path = PARTS[part]

    def with_part():
        model = make()
        above, _, name = path.rpartition(".")
        setattr(model.get_submodule(above), name, torch.compile(model.get_submodule(path)))
        return model

    plain, compiled = scrambled(make()), with_part()
    assert any("._orig_mod." in key for key in compiled.state_dict())
    for dialect in dialects(plain):
        assert models.load_checkpoint(compiled, models.to_dialect(plain, dialect)).complete
        assert_same_entries(models.to_dialect(compiled, dialect), models.to_dialect(plain, dialect))
    report, state = loaded(compiled.state_dict(), make)
    assert report.complete
    assert_same_entries(state, plain.state_dict())
    assert models.load_checkpoint(with_part(), compiled.state_dict()).complete


@pytest.mark.parametrize("prefix", ["", "module."])
def test_constants_of_surrogate_functions_are_left_out(prefix, tmp_path, capsys):
    """SpikingJelly once stored alpha as a tensor in the state dict: it is reported, neither loaded nor an error."""
    model = scrambled(resnet())
    plain = {f"{prefix}{key}": value for key, value in models.to_dialect(model, "authors").items()}
    path = tmp_path / "old.pth"
    for constant, name in ((torch.tensor(2.0), "alpha"), (torch.ones(1), "w")):  # a PLIF's weight is called w, too
        added = {f"{prefix}layer1.0.sn1.surrogate_function.{name}": constant}
        torch.save({"model": plain | added, "args": argparse.Namespace(model="sew_resnet")}, path)
        report, state = loaded(path)
        assert report.complete and report.unexpected == ()
        assert report.constants == (f"layer1.0.sn1.surrogate_function.{name}",)
        assert f"not loaded, settings of surrogate functions: {report.constants[0]}" in str(report)
        assert_same_entries(state, model.state_dict())
        words = ["convert-checkpoint", str(path), str(tmp_path / "out.pth"), "--to", "torchvision", "--force"]
        assert main(words) == 0 and "not loaded, settings" in capsys.readouterr().out
        assert_same_entries(torch.load(tmp_path / "out.pth")["model"], model.state_dict())
    for value in (torch.ones(2), "text"):
        added = {f"{prefix}sn1.surrogate_function.alpha": value}
        with pytest.raises(CheckpointError, match=r"not in the model: sn1\.surrogate_function\.alpha"):
            loaded(plain | added)


def test_an_entry_that_is_there_twice():
    state = resnet().state_dict()
    with pytest.raises(CheckpointError, match=r"state dict has the entry fc\.bias twice, once of a compiled module"):
        loaded(state | {"fc._orig_mod.bias": state["fc.bias"]})


@pytest.mark.parametrize("dtype, largest", [(torch.float16, "6.55e+04"), (torch.float32, "3.403e+38")])
def test_values_too_large_for_the_models_dtype(dtype, largest):
    """Values that would silently become infinite are an error; infinite values stay infinite."""
    state = resnet().state_dict()
    model = resnet().to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wide = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    wide["bn1.running_var"][1] = -1e39
    with pytest.raises(CheckpointError) as error:
        models.load_checkpoint(model, wide)
    assert f"bn1.running_var, values up to 1e+39, the largest of the model's {dtype} is {largest}" in str(error.value)
    assert_same_entries(model.state_dict(), before)
    report = models.load_checkpoint(model, wide, strict=False)
    assert list(report.mismatched) == ["bn1.running_var"] and report.mapped == len(before) - 1
    wide["bn1.running_var"][1] = float("inf")
    assert models.load_checkpoint(model, wide).complete and model.bn1.running_var[1] == float("inf")


def test_safetensors(tmp_path):
    package = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    model = scrambled(resnet())
    theirs = {key: value.contiguous() for key, value in models.to_dialect(model, "authors").items()}
    package.save_file(theirs, tmp_path / "theirs.safetensors")
    report, state = loaded(tmp_path / "theirs.safetensors")
    assert report.container is None and report.dialect == "authors"
    assert_same_entries(state, model.state_dict())
    # Ours, as a conversion writes it, and by theirs.
    words = [str(tmp_path / "theirs.safetensors"), str(tmp_path / "ours.safetensors"), "--to", "torchvision"]
    assert main(["convert-checkpoint", *words, "--model", "sew_resnet"]) == 0
    assert_same_entries(package.load_file(tmp_path / "ours.safetensors"), model.state_dict())
    models.save_checkpoint(model, tmp_path / "ours.safetensors")
    assert_same_entries(loaded(str(tmp_path / "ours.safetensors"))[1], model.state_dict())
    with pytest.raises(CheckpointError, match="no tensors by name under 'model'"):
        loaded(tmp_path / "ours.safetensors", container="model")


@pytest.mark.parametrize("content", [b"", b"PK", b"\xff" * 20, b"\x05\0\0\0\0\0\0\0{}", None, "cut off"])
def test_damaged_safetensors(content, tmp_path):
    package = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    path = tmp_path / "c.safetensors"
    if content == "cut off":
        content = package.save({key: value.contiguous() for key, value in resnet().state_dict().items()})[:-3]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"c\.safetensors") as error:
        loaded(path)
    assert ("does not exist" if content is None else "not a readable checkpoint") in str(error.value)


def test_safetensors_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "c.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"c\.safetensors needs the package safetensors: pip install safetensors"):
        loaded(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"new\.safetensors needs the package safetensors"):
        models.save_checkpoint(resnet(), tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
