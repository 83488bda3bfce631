"""A lost log, a link or a device does not end a run, and commands never replace files of another kind."""

import errno
import io
import os
import shutil
import subprocess
import sys

import pytest
import torch
from runs import CONFIG, PROCESS
from small_run import CHECKPOINT, WORDS, error_of, make, names

from sewsnn import progress
from sewsnn.cli import main
from sewsnn.errors import CheckpointError, UserError
from sewsnn.files import check_output, write_text
from sewsnn.train import checkpoint, state

RUN = [sys.executable, "-m", "sewsnn.cli"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def own(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "own")


class Broken(io.StringIO):
    """Cases: a full disk, a closed terminal, a reader that is gone."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    flush = lambda self: self.write("")  # noqa: E731


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPIPE])
def test_bars_and_lines_that_cannot_be_written(number, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken(number))
    monkeypatch.setattr(sys, "stdout", Broken(number))
    batches = [(torch.zeros(2, 1), torch.zeros(2))] * 3
    assert len(list(progress.watched(batches, "evaluation", 3))) == 3
    with progress.Progress("epoch", 2) as bar:
        bar.add(5)
        progress.say("a line")
        progress.tell("a note")
    progress.let_go_of_lost()
    print("what comes later")


def test_without_streams_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert len(list(progress.watched([(torch.zeros(2, 1), torch.zeros(2))], "evaluation", 1))) == 1
    progress.say("a line")
    progress.tell("a note")
    progress.let_go_of_lost()


@pytest.mark.parametrize("streams", ["2>&-", ">&-", ">/dev/full 2>/dev/full", ">/dev/full", "2>/dev/full"])
def test_a_run_goes_on_without_its_log(streams, tmp_path):
    words = " ".join(f"'{word}'" for word in [*RUN, "train", str(CONFIG), "--output", str(tmp_path / "run"), *WORDS])
    done = subprocess.run(["sh", "-c", f"{words} {streams}"], capture_output=True, text=True, timeout=300, **PROCESS)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "run" / CHECKPOINT)["epoch"] == 2
    assert "result.json" in names(tmp_path / "run")


def test_other_commands_say_that_their_output_is_lost(folder):
    command = f"'{sys.executable}' -m sewsnn.cli models > /dev/full"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300, **PROCESS)
    assert (done.returncode, done.stderr) == (1, "sewsnn: error: No space left on device\n")


# ---- links


def test_a_checkpoint_that_is_a_link(own, tmp_path):
    """The checkpoint is a link to another disk: it stays a link, and each kept epoch is a separate file."""
    (tmp_path / "disk").mkdir()
    shutil.move(own / CHECKPOINT, tmp_path / "disk" / "big.pt")
    (own / CHECKPOINT).symlink_to(tmp_path / "disk" / "big.pt")
    content = checkpoint.load(own / CHECKPOINT)
    saved = {key: content[key] for key in checkpoint.KEYS}
    for epoch in (2, 3, 4):
        checkpoint.save(own / CHECKPOINT, saved | {"seconds": float(epoch)})
        checkpoint.keep(own, epoch, 3, best=epoch == 3)
    assert (own / CHECKPOINT).is_symlink()
    for name, epoch in {
        "checkpoint-0002.pt": 2,
        "checkpoint-0003.pt": 3,
        "checkpoint-0004.pt": 4,
        "best.pt": 3,
    }.items():
        assert not (own / name).is_symlink() and checkpoint.load(own / name)["seconds"] == epoch


def test_a_checkpoint_that_is_a_link_to_another_of_the_run(own):
    """A user who goes back to the best epoch by a link keeps the best checkpoint."""
    (own / CHECKPOINT).unlink()
    (own / CHECKPOINT).symlink_to("best.pt")
    before = (own / "best.pt").read_bytes()
    content = checkpoint.load(own / CHECKPOINT)
    checkpoint.save(own / CHECKPOINT, {key: content[key] for key in checkpoint.KEYS} | {"seconds": 7.0})
    assert (own / "best.pt").read_bytes() == before and checkpoint.load(own / CHECKPOINT)["seconds"] == 7


def test_which_checkpoints_are_kept(own):
    """Keeps the newest checkpoints up to this epoch. Later ones, and the user's own files, stay."""
    for name in ("checkpoint-0008.pt", "checkpoint-0009.pt", "checkpoint-1.pt", "checkpoint-00011.pt"):
        shutil.copy(own / CHECKPOINT, own / name)
    for epoch in (3, 4):
        checkpoint.keep(own, epoch, 1, best=False)
    left = [name for name in names(own) if name.startswith("checkpoint-")]
    assert left == [
        "checkpoint-00011.pt",
        "checkpoint-0004.pt",
        "checkpoint-0008.pt",
        "checkpoint-0009.pt",
        "checkpoint-1.pt",
    ]


# ---- folders


def test_results_without_a_checkpoint_are_not_written_over(own, capsys):
    for path in own.glob("*.pt"):
        path.unlink()
    before = {name: (own / name).read_bytes() for name in names(own) if (own / name).is_file()}
    with pytest.raises(CheckpointError, match="holds the results of a run but no checkpoint"):
        state.find(own, "auto")
    assert "holds the results" in error_of(["train", CONFIG, "--output", own, *WORDS, "--resume", "auto"], capsys)
    assert before == {name: (own / name).read_bytes() for name in before}


def test_a_run_that_was_stopped_before_its_first_checkpoint(folder, own, capsys):
    for path in [*own.glob("*.pt"), own / "result.json"]:
        path.unlink()
    lines = (own / "metrics.csv").read_text().splitlines(keepends=True)
    (own / "metrics.csv").write_text("".join(lines[:2]))  # written before the checkpoint
    words = ["train", CONFIG, "--output", own, *WORDS]
    message = error_of([*words, "--resume"], capsys)
    assert "the run stopped before its first one); --resume auto continues" in message
    assert "--resume auto also works if the run stopped" in error_of(words, capsys)
    shutil.copy(folder / CHECKPOINT, own / "best.pt")
    assert "(the folder has best.pt); --resume auto continues" in error_of([*words, "--resume"], capsys)
    (own / "best.pt").unlink()
    assert state.find(own, "auto") == (None, "")


def test_an_old_result_goes_when_more_epochs_begin(own, monkeypatch):
    from sewsnn.train.config import load_config
    from sewsnn.train.loop import Trainer

    config = load_config(own / "config.yaml", {"output": str(own), "epochs": "3", "schedule.name": "constant"})
    content = checkpoint.load(own / CHECKPOINT)
    content["config"]["schedule"]["name"] = "constant"
    checkpoint.save(own / CHECKPOINT, {key: content[key] for key in checkpoint.KEYS})
    trainer = Trainer(config, resume=True)
    trainer.close()
    assert "result.json" not in names(own) and "metrics.csv" in names(own)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, capsys):
    """A step with finite loss and gradients that makes the weights overflow."""
    words = [*WORDS, "--lr", "1e30", "--weight_decay", "1e30", "--output", str(tmp_path / "run")]
    for more in (["--checkpoint_steps", "1"], ["--batch_size", "1437"]):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        words = [word for word in words if word not in ("--checkpoint_steps", "0")]
        assert main(["train", str(CONFIG), *words, *more]) == 1
        err = capsys.readouterr().err
        assert "is not finite" in err and "The last checkpoint is unchanged" in err
        assert not list((tmp_path / "run").glob("*.pt"))


# ---- outputs


def test_only_files_of_the_kind_are_replaced(folder, tmp_path, capsys):
    own = shutil.copytree(folder, tmp_path / "own")
    before = {name: (own / name).read_bytes() for name in (CHECKPOINT, "config.yaml")}
    os.mkfifo(tmp_path / "fifo")
    for target, message in (
        (own / CHECKPOINT, "a file of another type exists there"),
        (own / "config.yaml", "a file of another type exists there"),
        (tmp_path / "fifo", "FIFO, socket or device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "x", "does not exist"),
        ("/dev/null", "FIFO, socket or device"),
    ):
        assert message in error_of(["eval", own, "--json", target], capsys)
        assert capsys.readouterr().out == ""
        assert message in error_of(["data", "show", CONFIG, "--output", target], capsys)
    assert before == {name: (own / name).read_bytes() for name in before}
    with pytest.raises(UserError, match="FIFO"):
        write_text(tmp_path / "fifo", "x")
    (tmp_path / "old.json").write_text("{}")
    check_output(tmp_path / "old.json", b"{")
    (tmp_path / "empty.json").touch()
    check_output(tmp_path / "empty.json", b"{")


def test_what_is_evaluated_is_said(folder, tmp_path, capsys):
    assert "use --weights" in error_of(["eval", folder, "--model.weights", folder / CHECKPOINT], capsys)
    words = ["--blocks", "[1]", "--widths", "[4]", "--T", "2", "--threads", "1"]
    with_lif = [*words, "--neuron.type", "LIF", "--neuron.tau", "3"]
    assert main(["eval", str(CONFIG), *with_lif, "--weights", str(folder / CHECKPOINT)]) == 0
    assert "was trained with" not in capsys.readouterr().err  # it was asked for
    other = tmp_path / "lif.yaml"
    other.write_text(CONFIG.read_text().replace("type: IF", "type: LIF"))
    assert main(["eval", str(other), *words, "--weights", str(folder / CHECKPOINT)]) == 0
    err = capsys.readouterr().err
    assert (
        "was trained with model.neuron.type 'IF' and is evaluated with 'LIF'" in err and err.count("trained with") == 1
    )


def test_a_network_that_the_file_names_is_exported_as_it_was_trained(folder, tmp_path, capsys):
    from sewsnn.export.source import open_source

    name = checkpoint.load(folder / CHECKPOINT)["config"]["model"]["name"]
    same, other = open_source(folder / CHECKPOINT, name), open_source(folder / CHECKPOINT)
    x = other.example(2)
    assert torch.equal(same.model(x), other.model(x)) and same.model.T == other.model.T == 2
    words = ["export", folder / CHECKPOINT, tmp_path / "x.pt2", "--model", "sew_resnet18"]
    assert f"contains a {name}, not a sew_resnet18" in error_of(words, capsys)
