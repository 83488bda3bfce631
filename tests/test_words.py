"""Arguments of the command line may come in any order; none is dropped, and none causes a traceback."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sewsnn.cli import main
from sewsnn.errors import UserError, out_of_memory
from sewsnn.functional import if_multistep
from sewsnn.train import build, loop

CONFIG = str(Path(__file__).parent.parent / "configs" / "digits.yaml")


@pytest.fixture
def asked(monkeypatch):
    """Returns the configuration that ``sewsnn train`` would use, and whether it would resume."""
    calls = []
    monkeypatch.setattr(loop, "train", lambda config, resume: calls.append((config, resume)))
    return calls


@pytest.mark.parametrize(
    "words, resume",
    [
        ("CONFIG --lr -0 --output o --momentum 0.5", False),
        ("--lr 0 --output o --momentum 0.5 CONFIG", False),
        ("--lr=0 CONFIG --momentum=0.5 --output=o", False),
        ("--resume CONFIG --lr 0 --momentum 0.5 --output o", True),
        ("--lr 0 --resume --output o CONFIG --momentum 0.5", True),
        ("--output o --lr 0 --momentum 0.5 CONFIG --resume", True),
        ("--resume auto CONFIG --lr 0 --momentum 0.5 --output o", "auto"),
        ("--lr 0 --output o --resume auto --momentum 0.5 CONFIG", "auto"),
        ("CONFIG --lr 0 --output o --momentum 0.5 --resume=auto", "auto"),
        ("CONFIG --lr 0 --output o --momentum 0.5 --resume auto", "auto"),
        ("--lr 0 --output o --momentum 0.5 --resume -- CONFIG", True),
    ],
)
def test_any_order(asked, words, resume):
    assert main(["train", *(CONFIG if word == "CONFIG" else word for word in words.split())]) == 0
    ((config, how),) = asked
    assert (config.optimizer.lr, config.optimizer.momentum, config.output, how) == (0, 0.5, "o", resume)


def test_values_that_begin_with_dashes(asked, capsys):
    assert main(["train", "--name=--x", "--v_reset", "-0.5", CONFIG, "--output=-o"]) == 0
    config = asked[0][0]
    assert (config.name, config.model.neuron.v_reset, config.output) == ("--x", -0.5, "-o")
    assert main(["train", CONFIG, "--name", "--x"]) == 1
    assert "--name needs a value (--name=VALUE" in capsys.readouterr().err


def test_the_last_of_two_counts(asked):
    """A script may put the arguments of its user after its own."""
    assert main(["train", "--lr", "1", CONFIG, "--lr", "2", "--output=a", "--output", "b"]) == 0
    assert (asked[0][0].optimizer.lr, asked[0][0].output) == (2, "b")


def test_other_commands_with_keys(tmp_path, capsys):
    picture = tmp_path / "a.png"
    words = ["--batch_size", "4", "--output", str(picture), "--seed", "1", CONFIG, "--test", "--samples", "6"]
    assert main(["data", "show", *words]) == 0 and picture.exists()
    assert "a batch has only 4 samples" in capsys.readouterr().out
    assert main(["eval", "--test_amp", "off", "--steps", "1", CONFIG]) == 1
    assert "--weights must name a checkpoint" in capsys.readouterr().err


MANY = "9" * 5000
WORDS = [
    ("train CONFIG --lr 1 --optimizer.lr 2", "--lr and --optimizer.lr both set optimizer.lr"),
    ("train CONFIG extra", "expected --key value, got 'extra'"),
    (f"train CONFIG --seed {MANY}", "seed must be int"),
    (f"train CONFIG --lr {MANY}", "optimizer.lr must be"),
    ("train CONFIG --name a\0b", "an argument must not contain a NUL character"),
    ("eval \0 ", "an argument must not contain a NUL character"),
    ("eval CONFIG --steps 1,,2", "--steps must be whole numbers separated by commas, got '1,,2'"),
    ("eval CONFIG --steps 1e9", "--steps must be whole numbers"),
    ("eval CONFIG --steps=", "--steps must be whole numbers"),
    (f"eval CONFIG --steps {MANY}", "--steps must be whole numbers"),
    ("eval " + "n" * 300, ""),
    (f"export c.pt a.pt2 --T {10**25}", "--T must be from 1 to 65,536"),
    (f"export c.pt a.pt2 --T {MANY}", "--T must be from 1 to 65,536"),
    ("export c.pt a.pt2 --T 10**25", "--T must be a whole number, got '10**25'"),
    ("export c.pt a.pt2 --batch 0", "--batch must be from 1"),
    ("export c.pt a.pt2 --image-size 1000000000", "--image-size must be from 1 to 16,384"),
    ("data show CONFIG --output a.png --samples 1000000000", "--samples must be from 1 to 256"),
    ("data prepare imagenet --root a --output b --workers 1000000000", "--workers must be from 0 to 1,024"),
    ("data prepare imagenet --root a --output b --size 1000000000", "--size must be from 1 to 16,384"),
    ("data prepare imagenet --root a --output b --per-shard -1", "--per-shard must be from 0"),
    ("data prepare imagnet --root a --output b", "'imagnet' cannot be prepared; choose one of imagenet,"),
    ("data prepare imagenet --root loop --output b", "root: cannot use 'loop': Too many levels of symbolic links"),
    ("data prepare cifar10_dvs --root . --output loop", "output: cannot use 'loop': Too many levels"),
    ("data show CONFIG --output loop", "cannot write loop: Too many levels of symbolic links"),
    ("train CONFIG --output loop", "cannot write to the output folder loop: it is a file, or a link"),
    ("models sew_resnet19", "is unknown; see sewsnn models (nearest: sew_resnet1"),
]


@pytest.mark.parametrize("words, message", WORDS, ids=range(len(WORDS)))
def test_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert main([CONFIG if word == "CONFIG" else word for word in words.split(" ")]) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("sewsnn: error: ") and err.count("\n") == 1 and len(err) < 500
    assert os.listdir() == ["loop"]


def test_a_path_that_is_not_utf8(tmp_path, monkeypatch):
    """A stdout with strict encoding does not end the program after all work is done."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["data", "show", CONFIG, "--output", str(tmp_path / "\udcff.png")]) == 0
    out.flush()
    assert out.buffer.getvalue().endswith(b"\\udcff.png\n")


TOO_MUCH = {
    "torch": lambda: torch.empty(2**60),
    "sizes": lambda: torch.empty(2**40, 2**40),
    "numpy": lambda: np.empty(2**57),
    "python": lambda: bytearray(2**62),
    "c++": lambda: _raise(RuntimeError("std::bad_alloc")),
    "cuda": lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")),
    "cudnn": lambda: _raise(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    "fork": lambda: _raise(OSError(12, "Cannot allocate memory")),
    "worker": lambda: _raise(
        RuntimeError("Caught it in worker.\n  File x\nnumpy: Unable to allocate 2 GiB for an array")
    ),
}


def _raise(error):
    raise error


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_too_little_memory_is_one_line(kind, tmp_path, monkeypatch, capsys):
    """Memory errors of torch, numpy, Python and the kernels while a network is built; no run folder is created."""
    monkeypatch.setattr(build, "build_model", lambda *_: TOO_MUCH[kind]())
    assert main(["train", CONFIG, "--output", str(tmp_path / "a")]) == 1
    err = capsys.readouterr().err
    assert "sewsnn: error: out of memory (" in err and "data.batch_size" in err and err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_too_little_memory_below_another_error(monkeypatch, capsys):
    """Too little memory in torch.export is not reported as a network that it cannot express."""

    def too_large(*_):
        try:
            TOO_MUCH["torch"]()
        except RuntimeError as error:
            raise UserError("torch.export cannot express it") from error

    monkeypatch.setattr("sewsnn.export.source.open_source", too_large)
    assert main(["export", "a.pt", "a.pt2"]) == 1
    assert re.search(r"out of memory \(.* a smaller --batch, --image-size or --T\n$", capsys.readouterr().err)


def test_an_op_that_gets_no_memory_is_known():
    with pytest.raises(RuntimeError) as error:
        if_multistep(torch.zeros(1, 1).expand(4, 2**44))
    assert "sewsnn can't allocate memory" in out_of_memory(error.value)


def test_other_errors_stay_what_they_are(monkeypatch, tmp_path):
    for error in (RuntimeError("a bug"), ValueError("memory"), RuntimeError("the size of tensor a must match")):
        assert out_of_memory(error) is None
    monkeypatch.setattr(build, "build_model", lambda *_: _raise(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", CONFIG, "--output", str(tmp_path / "run")])
