"""Checkpoints that are whole files with wrong contents: one line that names the file and the entry."""

import copy
import math

import pytest
import torch
from runs import command

from sewsnn.cli import main
from sewsnn.errors import CheckpointError
from sewsnn.train import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(command(folder, "--epochs", "1", "--ema", "0.9")[3:]) == 0
    return folder, checkpoint.load(folder / checkpoint.NAME)


def put(path, value):
    """A change: ``value`` at a path of keys; deletes where it is ``...``."""

    def change(content):
        *above, last = path
        for key in above:
            content = content[key]
        if value is ...:
            del content[last]
        else:
            content[last] = value(content[last]) if callable(value) else value

    return change


W = "conv1.weight"
GROUP = ("optimizer", "param_groups", 0)
LOAD = {  # refused by checkpoint.load
    "missing": put(["rng"], ...),
    "extra": put(["more"], 1),
    "version of a run": put(["version"], "2"),
    "version True": put(["version"], True),
    "epoch text": put(["epoch"], "1"),
    "epoch bool": put(["epoch"], True),
    "epoch negative": put(["epoch"], -1),
    "epoch huge": put(["epoch"], 1_000_000_000),
    "epoch float": put(["epoch"], 1.0),
    "epoch tensor": put(["epoch"], torch.tensor(1)),
    "step negative": put(["step"], -3),
    "step None": put(["step"], None),
    "samples huge": put(["samples"], 10**12),
    "samples nan": put(["samples"], math.nan),
    "world 0": put(["world"], 0),
    "world 2": put(["world"], 2),
    "model list": put(["model"], []),
    "model empty": put(["model"], {}),
    "model of numbers": put(["model", W], 1.0),
    "model key": put(["model", 3], torch.zeros(1)),
    "model sparse": put(["model", W], torch.zeros(3, 3).to_sparse()),
    "average missing": put(["average"], None),
    "average text": put(["average"], "none"),
    "optimizer list": put(["optimizer"], [1]),
    "optimizer without state": put(["optimizer", "state"], ...),
    "no groups": put(["optimizer", "param_groups"], []),
    "groups dict": put(["optimizer", "param_groups"], {}),
    "lr nan": put([*GROUP, "lr"], math.nan),
    "lr text": put([*GROUP, "initial_lr"], "0.1"),
    "a weight twice": put([*GROUP, "params"], lambda p: [*p[:-1], p[0]]),
    "state of no weight": put(["optimizer", "state", 999], {}),
    "fewer weights": put([*GROUP, "params"], lambda p: p[:-1]),
    "state of text": put(["optimizer", "state", 0], {"momentum_buffer": "x"}),
    "scaler empty": put(["scaler"], {}),
    "scaler scale": put(["scaler", "scale"], -1.0),
    "scaler scale inf": put(["scaler", "scale"], math.inf),
    "scaler tracker": put(["scaler", "_growth_tracker"], None),
    "rng text": put(["rng"], "x"),
    "rng short": put(["rng"], []),
    "rng floats": put(["rng", 0, "cpu"], torch.zeros(5056)),
    "rng None": put(["rng", 0], None),
    "running empty": put(["running"], {}),
    "running text": put(["running", "loss"], "1"),
    "running negative": put(["running", "samples"], -1),
    "history text": put(["history"], "x"),
    "history short": put(["history"], []),
    "history row": put(["history", 0], 3),
    "history column": put(["history", 0, "test_loss"], ...),
    "history value": put(["history", 0, "test_accuracy"], "good"),
    "history epoch": put(["history", 0, "epoch"], 7),
    "rates short": put(["firing_rates"], []),
    "rates row": put(["firing_rates", 0], [1]),
    "seconds text": put(["seconds"], "long"),
    "seconds nan": put(["seconds"], math.nan),
    "config list": put(["config"], []),
    "config key": put(["config", "modell"], {}),
    "config value": put(["config", "model", "T"], "four"),
    "config section": put(["config", "train"], 3),
}
RESUME = {  # of the right kind, and do not fit the run
    "weight missing": put(["model", W], ...),
    "weight too many": put(["model", "other"], torch.zeros(1)),
    "weight shape": put(["model", W], torch.zeros(1)),
    "weight dtype": put(["model", W], lambda w: w.long()),
    "weight complex": put(["model", W], lambda w: w.to(torch.complex64)),
    "average entry": put(["average", "module." + W], ...),
    "two groups": put(["optimizer", "param_groups"], lambda g: [*g, {**g[0], "params": []}]),
    "momentum": put([*GROUP, "momentum"], 0.1),
    "momentum missing": put([*GROUP, "momentum"], ...),
    "weight decay": put([*GROUP, "weight_decay"], 3.0),
    "first learning rate": put([*GROUP, "initial_lr"], 3.0),
    "buffer shape": put(["optimizer", "state", 0, "momentum_buffer"], torch.zeros(2, 2)),
    "rng of another size": put(["rng", 0, "cpu"], torch.zeros(3, dtype=torch.uint8)),
}


@pytest.mark.parametrize("change", LOAD.values(), ids=LOAD)
def test_what_is_no_checkpoint_is_not_loaded(finished, tmp_path, change):
    content = copy.deepcopy(finished[1])
    change(content)
    path = tmp_path / "c.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def resumed(finished, tmp_path, capsys, content):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(content, folder / checkpoint.NAME)
    before = (folder / checkpoint.NAME).read_bytes()
    status = main(["train", str(finished[0] / "config.yaml"), "--output", str(folder), "--resume=auto"])
    assert (folder / checkpoint.NAME).read_bytes() == before
    assert [path.name for path in folder.iterdir()] == [checkpoint.NAME]
    return status, capsys.readouterr().err


@pytest.mark.parametrize("change", RESUME.values(), ids=RESUME)
def test_what_does_not_fit_is_not_resumed(finished, tmp_path, capsys, change):
    content = copy.deepcopy(finished[1])
    change(content)
    status, error = resumed(finished, tmp_path, capsys, content)
    assert status == 1 and error.count("\n") == 1 and "does not fit its configuration" in error, error


def test_more_samples_than_an_epoch_has(finished, tmp_path, capsys):
    content = copy.deepcopy(finished[1])
    batch = content["config"]["data"]["batch_size"]
    content |= {"epoch": 0, "history": [], "firing_rates": [], "step": 10**6, "samples": 10**6 * batch}
    status, error = resumed(finished, tmp_path, capsys, content)
    assert status == 1 and "samples must be at most those of an epoch" in error, error


def test_export_checks_the_configuration(finished, tmp_path, capsys):
    for key, value in (("T", 10**9), ("blocks", [10**6]), ("name", "nope"), ("connect_f", "XOR")):
        content = copy.deepcopy(finished[1])
        content["config"]["model"][key] = value
        torch.save(content, tmp_path / "c.pt")
        assert main(["export", str(tmp_path / "c.pt"), str(tmp_path / "out.pt2")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("sewsnn: error:") and error.count("\n") == 1, error
