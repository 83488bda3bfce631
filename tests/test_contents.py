"""Undamaged checkpoints with content that no run writes: the command prints one line of error and writes nothing."""

import argparse
import copy
import math
import re
import shutil

import pytest
import small_run
import torch
from small_run import CHECKPOINT, error_of

from sewsnn import models
from sewsnn.errors import CheckpointError
from sewsnn.train import checkpoint
from sewsnn.train.contents import CONTENTS

HUGE = torch.zeros(1).expand(2**40)  # four bytes in the file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run.make(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def content(run):
    return checkpoint.load(run / CHECKPOINT)


def cyclic():
    value = []
    value.append(value)
    return value


def drop(*keys):
    def change(c):
        for key in keys[:-1]:
            c = c[key]
        del c[keys[-1]]

    return change


def put(value, *keys):
    """Changes one value; a function computes the new value from the old one."""

    def change(c):
        for key in keys[:-1]:
            c = c[key]
        c[keys[-1]] = value(c[keys[-1]]) if callable(value) else value

    return change


def both(*changes):
    def change(c):
        for one in changes:
            one(c)

    return change


ROW = ("history", 0)
GROUP = ("optimizer", "param_groups", 0)
STATE = ("optimizer", "state")
WRONG = {
    # key: the change, and what the message names
    **{
        f"no {key}": (drop(key), rf"{key} must be present|its format is not|version")
        for key in CONTENTS
        if key not in ("data", "monitor")
    },
    **{f"{key} a number": (put(-1.5, key), rf"{key} must be|its format is not|version") for key in CONTENTS},
    **{f"{key} a text": (put("x\n" * 99, key), rf"{key} must be|its format is not|version") for key in CONTENTS},
    **{f"{key} a tensor": (put(torch.ones(3), key), rf"{key} must be|its format is not|version") for key in CONTENTS},
    **{f"{key} a cycle": (put(cyclic(), key), rf"{key}(\[0\])? must be|its format is not|version") for key in CONTENTS},
    "unknown key": (lambda c: c.update(more=1), "more must be absent"),
    "key no text": (lambda c: c.update({3: 1}), "a dictionary with text as keys"),
    "epoch large": (put(10**9, "epoch"), "epoch must be 2"),
    "epoch huge": (put(10**400, "epoch"), "epoch must be a whole number"),
    "epoch negative": (put(-1, "epoch"), "epoch must be a whole number"),
    "epoch true": (put(True, "epoch"), "epoch must be a whole number"),
    "epoch float": (put(2.0, "epoch"), "epoch must be a whole number"),
    "epoch less": (put(1, "epoch"), "the length of history must be 1"),
    "step large": (both(put(10**6, "step"), put(512 * 10**6, "samples")), "step 1,000,000 of an epoch with 3"),
    "step alone": (put(1, "step"), "samples must be 512"),
    "samples alone": (put(7, "samples"), "samples must be 0"),
    "world": (put(2, "world"), "the length of rng must be 2"),
    "world none": (both(put(0, "world"), put([], "rng")), "world must be a whole number >= 1"),
    "rng short": (put(lambda v: v[:100], "rng", 0, "cpu"), r"rng\[0\]\.cpu must be the state"),
    "rng float": (put(lambda v: v.float(), "rng", 0, "cpu"), r"rng\[0\]\.cpu must be the state"),
    "rng nonsense": (put(lambda v: torch.full_like(v, 255), "rng", 0, "cpu"), r"rng\[0\]\.cpu must be the state"),
    "rng huge": (put(HUGE, "rng", 0, "cuda"), r"rng\[0\]\.cuda must be the state"),
    "rng keys": (put({}, "rng", 0), r"rng\[0\]\.c\w+ must be present"),
    "running key": (drop("running", "top5"), "running.top5 must be present"),
    "running more": (put(1, "running", "top7"), "running.top7 must be absent"),
    "running nan": (put(math.nan, "running", "loss"), "running.loss must be a finite number"),
    "running top1": (put(5, "running", "top1"), "running.top1 must be 0"),
    "running tensor": (put(HUGE, "running", "samples"), "running.samples must be"),
    "seconds infinite": (put(math.inf, "seconds"), "seconds must be a finite number >= 0"),
    "seconds negative": (put(-1.0, "seconds"), "seconds must be a finite number >= 0"),
    "history row": (put([1], *ROW), r"history\[0\] must be a dictionary"),
    "history column": (drop(*ROW, "lr"), r"history\[0\]\.lr must be present"),
    "history more": (put(1, *ROW, "x"), r"history\[0\]\.x must be absent"),
    "history text": (put("0.5", *ROW, "test_accuracy"), r"history\[0\]\.test_accuracy must be a number"),
    "history none": (put(None, *ROW, "test_accuracy"), r"history\[0\]\.test_accuracy must be a number"),
    "history percent": (put(97.0, *ROW, "test_accuracy"), r"history\[0\]\.test_accuracy must be a number from 0 to 1"),
    "history order": (put(1, *ROW, "epoch"), r"history\[\]\.epoch must be \[0, 1\]"),
    "history long": (put(lambda v: v * 2, "history"), "the length of history must be 2"),
    "rates short": (put(lambda v: v[:1], "firing_rates"), "the length of firing_rates must be 2"),
    "rates list": (put([0.5], "firing_rates", 0), r"firing_rates\[0\] must be a dictionary"),
    "rates tensor": (put(HUGE, "firing_rates", 0, "sn1"), r"firing_rates\[0\]\.sn1 must be a number"),
    "rates others": (put({"x": 0.5}, "firing_rates", 1), r"firing_rates\[\] must be"),
    "config key": (put(1, "config", "nope"), "config must be a configuration"),
    "config type": (put("ten", "config", "train", "epochs"), "config must be a configuration"),
    "config limit": (put(0, "config", "train", "epochs"), "config must be a configuration"),
    "config tensor": (put(HUGE, "config", "seed"), "config must be a configuration"),
    "config cycle": (put(cyclic(), "config", "model", "blocks"), "config must be a configuration"),
    "config list": (put([], "config"), "config must be a configuration"),
    "model list": (put([1], "model"), "model must be a dictionary"),
    "model number": (put(1.0, "model", "fc.bias"), r"model\.fc\.bias must be a dense tensor"),
    "model sparse": (put(lambda v: v.to_sparse(), "model", "fc.bias"), r"model\.fc\.bias must be a dense tensor"),
    "model missing": (drop("model", "fc.bias"), r"model: fc\.bias is missing"),
    "model more": (put(torch.ones(2), "model", "fc.x"), r"model: fc\.x is not part of this network"),
    "model shape": (put(torch.ones(3), "model", "fc.bias"), r"model\.fc\.bias is torch\.float32 \[3\] in the file"),
    "model huge": (put(HUGE, "model", "fc.bias"), r"model\.fc\.bias is torch\.float32 \[1099511627776\] in the file"),
    "model dtype": (put(lambda v: v.double(), "model", "fc.bias"), r"model\.fc\.bias is torch\.float64"),
    "average gone": (put(None, "average"), "whether there is an average must be True"),
    "average missing": (drop("average", "n_averaged"), "average: n_averaged is missing"),
    "average shape": (put(torch.ones(3), "average", "module.fc.bias"), r"average\.module\.fc\.bias is .*\[3\]"),
    "average text": (put("x", "average", "module.fc.bias"), r"average\.module\.fc\.bias must be a dense tensor"),
    "no groups": (put([], *GROUP[:2]), "optimizer.param_groups: the file has 0, this run has 1"),
    "two groups": (put(lambda v: v * 2, *GROUP[:2]), "optimizer.param_groups: the file has 2, this run has 1"),
    "group list": (put([1], *GROUP), r"optimizer\.param_groups\[0\] must be a dictionary"),
    "group params": (put([0], *GROUP, "params"), r"optimizer\.param_groups\[0\]\.params"),
    "group momentum": (
        put(0.5, *GROUP, "momentum"),
        r"param_groups\[0\]\.momentum is 0\.5 in the file and 0\.9 in this run",
    ),
    "group without": (drop(*GROUP, "weight_decay"), r"param_groups\[0\]\.weight_decay"),
    "group lr": (put(math.nan, *GROUP, "lr"), r"param_groups\[0\]\.lr must be a finite number"),
    "group tensor": (put(HUGE, *GROUP, "lr"), r"param_groups\[0\]\.lr must be numbers"),
    "optimizer key": (drop(*STATE), r"optimizer\.state must be present"),
    "state list": (put([], *STATE), r"optimizer\.state must be a dictionary"),
    "state names": (put({"a": {}}, *STATE), r"optimizer\.state must be a dictionary with whole"),
    "state missing": (drop(*STATE, 3), r"optimizer\.state has 10 parameters, but this run has 11"),
    "state empty": (put({}, *STATE, 3), r"optimizer\.state\[3\] must have momentum_buffer"),
    "state more": (put(1, *STATE, 3, "step"), r"optimizer\.state\[3\] must have momentum_buffer"),
    "state none": (put(None, *STATE, 3, "momentum_buffer"), r"optimizer\.state\[3\]\.momentum_buffer must be a dense"),
    "state shape": (put(torch.ones(7), *STATE, 3, "momentum_buffer"), r"optimizer\.state\[3\]\.momentum_buffer is "),
    "scaler empty": (put({}, "scaler"), r"scaler\.\w+ must be present"),
    "scaler zero": (put(0.0, "scaler", "scale"), r"scaler\.scale must be a finite number above 0"),
    "scaler nan": (put(math.nan, "scaler", "scale"), r"scaler\.scale must be"),
    "scaler growth": (put(1.0, "scaler", "growth_factor"), r"scaler\.growth_factor must be"),
    "scaler interval": (put(0.5, "scaler", "growth_interval"), r"scaler\.growth_interval must be"),
    "versions": (put({"torch": 2}, "versions"), r"versions\.torch must be"),
    "version 3": (put(3, "version"), "has version 3 of the format; this sewsnn reads version 2"),
    "format": (put("x", "format"), "its format is not"),
}


def written(content, change, path):
    changed = copy.deepcopy(content)
    change(changed)
    path.unlink(missing_ok=True)  # it may be a link
    torch.save(changed, path)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_contents_are_refused_in_one_line(name, run, content, tmp_path, capsys):
    """``--resume`` and ``--resume=auto`` refuse it: it is not damaged, and an older checkpoint would overwrite it."""
    change, words = WRONG[name]
    for path in run.glob("*.*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    written(content, change, tmp_path / CHECKPOINT)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for how in ("--resume", "--resume=auto"):
        status, _, err = small_run.resume(tmp_path, how, capsys)
        assert status == 1 and err.startswith("sewsnn: error: ") and err.count("\n") == 1 and len(err) < 400, err
        assert str(tmp_path / CHECKPOINT) in err
        assert re.search(words, err), err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_right_contents_are_taken(content, tmp_path, capsys):
    """Checkpoints that runs write: at the end of training, or before the first step."""
    for change in (
        lambda c: None,
        put(math.nan, *ROW, "test_loss"),
        put(1, *GROUP, "fused"),
        lambda c: c["optimizer"].update(state={}),
    ):
        written(content, change, tmp_path / CHECKPOINT)
        checkpoint.load(tmp_path / CHECKPOINT)
    assert small_run.resume(tmp_path, "--resume", capsys)[0] == 0


@pytest.mark.parametrize(
    "change, words",
    [
        (put(None, "average"), "whether there is an average"),
        (drop("average", "module.fc.bias"), r"missing: fc\.bias"),
        (put(torch.ones(3), "average", "module.fc.bias"), r"fc\.bias, \[3\] in the file, \[10\] in the model"),
        (put(HUGE, "average", "module.fc.bias"), r"fc\.bias, \[1099511627776\] in the file"),
        (put([], "average"), "average must be a dictionary"),
    ],
)
def test_eval_of_a_wrong_average(change, words, run, content, tmp_path, capsys):
    shutil.copy(run / "config.yaml", tmp_path)
    written(content, change, tmp_path / CHECKPOINT)
    err = error_of(["eval", tmp_path, "--average"], capsys)
    assert str(tmp_path / CHECKPOINT) in err and re.search(words, err), err


FOREIGN = {
    "number": put(1.0, "model", "fc.bias"),
    "none": put(None, "model", "fc.bias"),
    "list": put([torch.ones(10)], "model", "fc.bias"),
    "empty": put(torch.ones(0), "model", "fc.weight"),
    "scalar": put(torch.ones(()), "model", "fc.weight"),
    "nested": put(lambda _: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "model", "fc.bias"),
    "meta": put(torch.ones(10, device="meta"), "model", "fc.bias"),
    "sparse": put(lambda v: v.to_sparse(), "model", "fc.weight"),
    "csr": put(lambda v: v.to_sparse_csr(), "model", "fc.weight"),
    "quantized": put(lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "model", "fc.bias"),
    "complex": put(torch.ones(10, dtype=torch.complex64), "model", "fc.bias"),
    "integers": put(torch.ones(10, dtype=torch.int64), "model", "fc.bias"),
    "float4": put(torch.zeros(10, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "model", "fc.bias"),
    "huge": put(HUGE, "model", "fc.bias"),
    "huge matrix": put(torch.zeros(1, 1).expand(2**40, 4), "model", "fc.weight"),
    "huge stem": put(torch.zeros(1, 1, 1, 1).expand(4, 2**40, 3, 3), "model", "conv1.weight"),
    "names": lambda c: c["model"].update({7: torch.ones(1)}),
    "long name": lambda c: c["model"].update({"x\n" * 9999: torch.ones(1)}),
    "no weights": put({}, "model"),
    "text": put("weights", "model"),
    "config": put(HUGE, "config", "model", "T"),
    "config steps": put(-3, "config", "model", "T"),
    "config name": put("nope", "config", "model", "name"),
    "config widths": put([2**40], "config", "model", "widths"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_weights_with_odd_contents(name, content, tmp_path, capsys):
    """eval, export and convert-checkpoint report it in one line."""
    path = tmp_path / "c.pt"
    written(content, FOREIGN[name], path)
    for words in (
        ["eval", small_run.CONFIG, *small_run.WORDS, "--weights", path],
        ["export", path, tmp_path / "net.pt2"],
        ["convert-checkpoint", path, tmp_path / "out.pt", "--to", "authors"],
    ):
        if name.startswith("config") and words[0] != "export":  # which reads the configuration
            continue
        err = error_of(words, capsys)
        assert len(err) < 1500 and "c.pt" in err
    assert small_run.names(tmp_path) == ["c.pt"]


def test_namespaces_of_any_content(tmp_path):
    """The authors' files have a Namespace; the reader checks its content."""
    model = models.create_model("sew_resnet", blocks=[1], widths=[4])
    for value in (torch.ones(3), None, [1], {"model": 3}, 2**70, cyclic()):
        torch.save(
            {"model": model.state_dict(), "args": argparse.Namespace(model=value, connect_f=value), 3: value},
            tmp_path / "c.pth",
        )
        assert "args" in str(models.load_checkpoint(model, tmp_path / "c.pth"))
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: it must hold tensors by name"):
        models.load_checkpoint(model, {(1, 2): torch.ones(1), "x\n" * 99: 3})


def test_values_that_are_no_numbers_are_weights(tmp_path):
    model = models.create_model("sew_resnet", blocks=[1], widths=[4])
    state = {
        key: torch.full_like(value, math.nan) for key, value in model.state_dict().items() if value.is_floating_point()
    }
    assert models.load_checkpoint(model, state).complete and model.fc.bias.isnan().all()
    state["fc.bias"] = torch.ones(len(state["fc.bias"])).to(torch.float8_e4m3fn)
    assert models.load_checkpoint(model, state).complete and model.fc.bias.eq(1).all()
