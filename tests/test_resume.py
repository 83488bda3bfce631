"""Resuming a run: from any checkpoint that is left, with the state of every object."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
from runs import PROCESS, assert_same_end, command, in_mid_epoch, rows, run, wait_for
from thorough import THOROUGH

from sewsnn.cli import main
from sewsnn.errors import CheckpointError, UserError
from sewsnn.train import checkpoint, metrics
from sewsnn.train.config import load_config
from sewsnn.train.loop import Trainer

# All that has a state or draws random numbers.
EVERYTHING = ["--ema", "0.9", "--accumulate", "2", "--mixup", "0.4", "--cutmix", "1.0", "--label_smoothing", "0.1"]
EVERYTHING += ["--schedule.every", "step", "--warmup_epochs", "1", "--clip_norm", "1.0", "--decay_norms", "false"]
EVERYTHING += ["--weight_decay", "1e-4", "--nesterov", "true", "--keep", "2", "--log_steps", "5", "--loss.name", "tet"]
EVERYTHING += ["--channels_last", "true", "--amp", "bf16", "--batch_size", "128"]


@pytest.fixture
def here(capsys, one_thread):
    """Like ``run``, but in this process, for runs that are not killed. Returns status, output and errors."""

    def run_here(output, *more):
        status = main(command(output, *more)[3:])
        return status, *capsys.readouterr()

    return run_here


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run(folder, *EVERYTHING)
    assert done.returncode == 0, done.stderr
    return folder


def test_what_is_kept(finished):
    """Keeps the checkpoints of the last two epochs and the best one; result.json has the best and the last result."""
    names = {path.name for path in finished.iterdir()}
    assert {"checkpoint.pt", "checkpoint-0002.pt", "checkpoint-0003.pt", "best.pt"} <= names
    assert "checkpoint-0001.pt" not in names and not [name for name in names if name.startswith(".")]
    assert checkpoint.load(finished / "checkpoint-0002.pt")["epoch"] == 2
    result = json.loads((finished / "result.json").read_text())
    accuracies = [float(row["test_accuracy"]) for row in rows(finished)]
    assert result["best_test_accuracy"] == max(accuracies) and result["test_accuracy"] == accuracies[-1]
    best = checkpoint.load(finished / "best.pt")
    assert best["epoch"] - 1 == result["best_epoch"] == accuracies.index(max(accuracies))
    assert result["average_accuracy"] == float(rows(finished)[-1]["average_accuracy"])
    saved = checkpoint.load(finished / "checkpoint.pt")
    assert saved["versions"]["torch"] == torch.__version__ and set(saved["firing_rates"][0]) == set(
        result["firing_rates"]
    )


def test_points_per_step_and_per_epoch(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    epochs, steps = (
        EventAccumulator(str(finished / "tensorboard")),
        EventAccumulator(str(finished / "tensorboard/steps")),
    )
    for events in (epochs, steps):
        events.Reload()
    assert [e.step for e in epochs.Scalars("test/accuracy")] == [0, 1, 2]
    assert [e.step for e in steps.Scalars("step/lr")] == [5, 10, 17, 22, 29, 34]
    tags = set(epochs.Tags()["scalars"])
    assert {"train/accuracy5", "average/accuracy", "data_wait", "peak_memory_mib", "lr", "firing_rate/sn1"} <= tags
    assert {"step/images_per_second", "step/data_wait", "step/memory_mib"} <= set(steps.Tags()["scalars"])


def test_killed_at_random_moments(finished, tmp_path):
    """Every option with a state is on. A checkpoint is always complete or does not exist; the command ends as if
    nothing had happened, bit for bit."""
    folder = tmp_path / "random"
    words = command(folder, *EVERYTHING, "--checkpoint_steps", "2", "--resume=auto")
    moments = random.Random(3)
    for attempt in range(4 if THOROUGH else 3):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **PROCESS)
        wait_for(process, lambda: (folder / "config.yaml").exists())
        if attempt == 1:
            wait_for(process, lambda: in_mid_epoch(folder, 1))
        known = (folder / checkpoint.NAME).exists()
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if known or (folder / checkpoint.NAME).exists():
            checkpoint.load(folder / checkpoint.NAME)
    done = subprocess.run(words, capture_output=True, text=True, **PROCESS)
    assert done.returncode == 0 and "resumed at epoch" in done.stdout, done.stderr
    assert_same_end(folder, finished)


def test_auto_begins_where_there_is_nothing_and_ends_where_all_is_done(here, finished, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    before = (folder / checkpoint.NAME).read_bytes()
    status, out, err = here(folder, *EVERYTHING, "--resume", "auto")
    assert status == 0 and "test accuracy" in out, err
    assert (folder / checkpoint.NAME).read_bytes() == before and len(rows(folder)) == 3


def test_auto_takes_the_newest_that_can_be_read(here, finished, tmp_path):
    """A damaged checkpoint is reported and an older one used; if all are damaged, no new run starts."""
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    (folder / checkpoint.NAME).write_bytes(b"half a check")
    found, message = checkpoint.newest(folder)
    assert found["epoch"] == 3 and "continuing from checkpoint-0003.pt" in message
    (folder / "checkpoint-0003.pt").unlink()
    status, out, err = here(folder, *EVERYTHING, "--resume", "auto")
    assert status == 0, err
    assert f"{folder}/checkpoint.pt is not a readable checkpoint" in out
    assert "continuing from checkpoint-0002.pt instead" in out
    assert_same_end(folder, finished)
    for path in folder.glob("*.pt"):
        path.write_bytes(b"")
    status, out, err = here(folder, *EVERYTHING, "--resume", "auto")
    assert status == 1 and f"no checkpoint in {folder} can be read" in err
    assert checkpoint.newest(tmp_path / "nothing") == (None, "")


@pytest.mark.parametrize("key", ["--ema", "--accumulate", "--warmup_epochs", "--mixup", "--sync_bn"])
def test_other_mathematics_is_refused(here, finished, key):
    value = {"--accumulate": "4", "--sync_bn": "true"}.get(key, "0.5")
    status, _, err = here(finished, *EVERYTHING, "--resume", key, value)
    assert status == 1 and "was made with other settings" in err and key[2:] in err


def test_batches_cut_otherwise_are_the_same_run(here, finished, tmp_path):
    """Half the batch size and twice the accumulation: the same number of samples per optimizer step."""
    folder = tmp_path / "recut"
    shutil.copytree(finished, folder)
    for old in folder.glob("checkpoint*.pt"):
        if old.name != "checkpoint-0002.pt":
            old.unlink()
    status, out, err = here(folder, *EVERYTHING, "--batch_size", "64", "--accumulate", "4", "--resume", "auto")
    assert status == 0 and "resumed at epoch 3, step 0" in out, err


SHORT = ["--epochs", "1", "--batch_size", "128", "--accumulate", "5", "--checkpoint_steps", "0", "--blocks", "[1]"]
TINY = [*SHORT[:2], *SHORT[6:], "--widths", "[4]", "--T", "2"]
SHORT += ["--widths", "[4]", "--T", "2"]  # 12 steps of 1437 samples: 5, 5 and 2 per optimizer step


@pytest.fixture
def stop_at(monkeypatch):
    """Sends SIGTERM to runs of this process during that step."""

    def stop(step):
        set_lr = Trainer._set_lr

        def set_and_signal(trainer, first):
            if trainer.step + 1 == step:
                trainer.signals.received = signal.SIGTERM
            return set_lr(trainer, first)

        monkeypatch.setattr(Trainer, "_set_lr", set_and_signal)
        return monkeypatch.undo

    return stop


def test_stopped_in_the_last_optimizer_step(here, stop_at, tmp_path):
    """The last optimizer step has fewer batches. None of them is repeated, whatever the batch size after the resume."""
    assert here(tmp_path / "whole", *SHORT)[0] == 0
    go_on = stop_at(11)
    assert here(tmp_path / "stopped", *SHORT)[0] == 130
    go_on()
    assert checkpoint.load(tmp_path / "stopped" / checkpoint.NAME)["step"] == 12
    shutil.copytree(tmp_path / "stopped", tmp_path / "recut")
    for name, more in (("stopped", []), ("recut", ["--batch_size", "64", "--accumulate", "10"])):
        status, out, err = here(tmp_path / name, *SHORT, *more, "--resume")
        assert status == 0 and "samples of this epoch are repeated" not in out, err
        assert_same_end(tmp_path / name, tmp_path / "whole", epochs=1)


def test_a_folder_that_vanishes(tmp_path):
    """A disk that is gone in mid-run: the run ends with the file's name, not with a traceback."""
    folder = tmp_path / "disk" / "run"
    words = command(folder, "--batch_size", "128")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **PROCESS)
    wait_for(process, lambda: in_mid_epoch(folder, 0))
    os.rename(tmp_path / "disk", tmp_path / "gone")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and b"Traceback" not in errors, errors.decode()
    assert f"sewsnn: error: cannot write {folder}".encode() in errors
    checkpoint.load(tmp_path / "gone" / "run" / checkpoint.NAME)


def test_stopped_in_evaluation(here, monkeypatch, tmp_path):
    """The run saves at once; the training of the epoch is done, and the evaluation is repeated."""
    assert here(tmp_path / "whole", *SHORT)[0] == 0
    evaluate = Trainer._evaluate

    def signalled(trainer, model):
        trainer.signals.received = signal.SIGTERM
        return evaluate(trainer, model)

    monkeypatch.setattr(Trainer, "_evaluate", signalled)
    assert here(tmp_path / "stopped", *SHORT)[0] == 130
    monkeypatch.undo()
    saved = checkpoint.load(tmp_path / "stopped" / checkpoint.NAME)
    assert (saved["epoch"], saved["step"], saved["history"]) == (0, 12, [])
    status, _, err = here(tmp_path / "stopped", *SHORT, "--resume")
    assert status == 0, err
    assert_same_end(tmp_path / "stopped", tmp_path / "whole", epochs=1)


def test_another_device(here, tmp_path):
    """``train.device: auto`` may change on a resume: the new device decides whether the optimizer is fused."""
    folder = tmp_path / "run"
    assert here(folder, *SHORT)[0] == 0
    saved = checkpoint.load(folder / checkpoint.NAME)
    saved["optimizer"]["param_groups"][0]["fused"] = True
    torch.save(saved, folder / checkpoint.NAME)
    trainer = Trainer(load_config(folder / "config.yaml"), resume=True)
    assert trainer.epoch == 1 and trainer.optimizer.param_groups[0]["fused"] is None


def test_more_epochs(here, tmp_path):
    """More epochs are allowed if the learning rate did not depend on them; the result is that of a run with them."""
    words = [*SHORT, "--schedule.name", "constant"]
    for folder, epochs, more in (("whole", "2", []), ("more", "1", []), ("more", "2", ["--resume"])):
        status, _, err = here(tmp_path / folder, *words, "--epochs", epochs, *more)
        assert status == 0, err
    assert_same_end(tmp_path / "more", tmp_path / "whole", epochs=2)
    status, _, err = here(tmp_path / "more", *words, "--resume")
    assert status == 1 and "other settings (train.epochs)" in err  # fewer epochs than were trained


def test_samples_left_out_before_a_resume_count(tmp_path):
    path = tmp_path / "corrupt.txt"
    assert metrics.write_corrupt(path, set()) == set() and not path.exists()
    assert len(metrics.write_corrupt(path, {"b is no image", "a is\nno image"})) == 2
    assert len(metrics.write_corrupt(path, {"c is no image", "b is no image"})) == 3
    assert path.read_text() == "a is no image\nb is no image\nc is no image\n"


def test_what_is_left_of_a_run(here, finished, tmp_path):
    """No new run overwrites any checkpoint, and the run continues from the best one if no other is left."""
    folder = tmp_path / "left"
    folder.mkdir()
    shutil.copy(finished / "best.pt", folder)
    status, _, err = here(folder, *EVERYTHING)
    assert status == 1 and "already holds a run" in err
    found, message = checkpoint.newest(folder)
    assert found["epoch"] >= 1 and message == f"{folder}/checkpoint.pt is missing; continuing from best.pt instead"


def test_killed_after_saving(here, finished, tmp_path):
    """A resume creates the missing kept checkpoint, removes a half-written file and updates config.yaml."""
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    (folder / "checkpoint-0003.pt").unlink()
    (folder / ".checkpoint.pt.0123abcd").write_bytes(b"half")
    status, _, err = here(folder, *EVERYTHING, "--log_steps", "7", "--resume")
    assert status == 0, err
    assert os.path.samefile(folder / "checkpoint-0003.pt", folder / checkpoint.NAME)
    assert not list(folder.glob(".*")) and "log_steps: 7\n" in (folder / "config.yaml").read_text()


def test_links_or_copies(tmp_path, monkeypatch):
    """On file systems without links the kept checkpoints are copies; an error of the disk is named."""
    (tmp_path / checkpoint.NAME).write_bytes(b"one")
    checkpoint.keep(tmp_path, 1, 1, best=True)
    assert os.path.samefile(tmp_path / checkpoint.NAME, tmp_path / "best.pt")
    checkpoint.keep(tmp_path, 1, 1, best=True)  # as after a resume at an epoch's end: it is there already
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "checkpoint-0001.pt", "checkpoint.pt"]

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / checkpoint.NAME).unlink()
    (tmp_path / checkpoint.NAME).write_bytes(b"two")
    checkpoint.keep(tmp_path, 2, 1, best=False)
    assert (tmp_path / "checkpoint-0002.pt").read_bytes() == b"two" and (tmp_path / "best.pt").read_bytes() == b"one"
    assert not (tmp_path / "checkpoint-0001.pt").exists()
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.keep(tmp_path / "nowhere", 2, 1, best=False)
    with pytest.raises(CheckpointError, match="has version 1 of the format; this sewsnn reads version 2"):
        torch.save({"format": checkpoint.FORMAT, "version": 1}, tmp_path / "old.pt")
        checkpoint.load(tmp_path / "old.pt")


def test_a_loss_that_is_not_finite_ends_the_run(here, tmp_path):
    """The command names step and layer without a traceback; the last checkpoint stays."""
    folder = tmp_path / "nan"
    status, _, err = here(folder, "--lr", "1e30", "--checkpoint_steps", "1", "--batch_size", "256")
    assert status == 1 and "Traceback" not in err
    assert "sewsnn: error: epoch 1, step" in err and "is not finite; the first such value is in" in err, err
    if (folder / checkpoint.NAME).exists():
        saved = checkpoint.load(folder / checkpoint.NAME)
        assert saved["epoch"] == 0 and saved["step"] >= 1


def test_compiled(here, tmp_path):
    """Training with torch.compile gives the same loss in the first epoch, up to rounding."""
    losses = []
    for name, more in (("plain", []), ("compiled", ["--compile", "default"])):
        status, _, err = here(tmp_path / name, *TINY, "--batch_size", "479", "--lr", "0", *more)
        assert status == 0, err
        losses.append(float(rows(tmp_path / name)[0]["train_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_deterministic(tmp_path):
    """Runs in a separate process, because the setting of torch is permanent."""
    done = run(tmp_path / "run", *TINY, "--batch_size", "479", "--deterministic", "true", "--amp", "fp16")
    assert done.returncode == 0, done.stderr
    assert float(rows(tmp_path / "run")[0]["loss_scale"]) > 0
