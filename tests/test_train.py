"""Training runs as users start them: separate processes, killed and resumed."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from runs import CONFIG, PROCESS, assert_same_end, command, in_mid_epoch, rows, run, wait_for
from small_run import error_of

from sewsnn.analysis import firing_rates
from sewsnn.cli import main
from sewsnn.data import create_data
from sewsnn.models import create_model
from sewsnn.neuron import BaseNode
from sewsnn.train import checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def refused(capsys):
    """Returns the last line of a run in this process."""
    return lambda output, *more: error_of(command(output, *more)[3:], capsys)


def test_what_a_run_leaves(finished):
    folder, output = finished
    result = json.loads((folder / "result.json").read_text())
    assert f"test accuracy {100 * result['test_accuracy']:.2f} %" in output and " s\n" in output
    assert len(rows(folder)) == result["epochs"] == 3
    assert float(rows(folder)[-1]["test_accuracy"]) == result["test_accuracy"] > 0.15  # chance is 0.1
    assert result["backend"] == "native" and all(0 <= r <= 1 for r in result["firing_rates"].values())
    for name in ("curves.png", "firing_rates.png"):
        assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(folder.glob(".*")), "temporary files are left"


def test_quick_start_reaches_98_percent(tmp_path):
    """Trains configs/digits.yaml unchanged, with one thread because other tests may run; it must reach 98 %."""
    folder = tmp_path / "digits"
    words = [sys.executable, "-m", "sewsnn.cli", "train", str(CONFIG), "--output", str(folder), "--threads", "1"]
    done = subprocess.run(words, capture_output=True, text=True, **PROCESS)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["test_accuracy"] >= 0.98, result


def test_interrupted_and_resumed(finished, tmp_path):
    """SIGTERM saves at the next step and says how to continue."""
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        command(folder, "--checkpoint_steps", "0"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **PROCESS
    )
    wait_for(process, lambda: (folder / "metrics.csv").exists() and len(rows(folder)) == 1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"--resume" in errors
    done = run(folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, finished[0])


def test_a_folder_with_a_run_is_left_alone(finished, refused):
    folder, _ = finished
    before = (folder / checkpoint.NAME).read_bytes()
    error = refused(folder)
    assert "already holds a run" in error and "--resume" in error
    assert (folder / checkpoint.NAME).read_bytes() == before


def test_resume_with_other_settings_is_refused(finished, refused):
    assert "other settings (optimizer.lr)" in refused(finished[0], "--resume", "--lr", "0.2")


def test_resume_of_nothing(tmp_path, refused):
    assert "there is no checkpoint" in refused(tmp_path / "none", "--resume")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text", "empty", "other dictionary"])
def test_damaged_checkpoint(finished, tmp_path, damage, refused):
    path = tmp_path / checkpoint.NAME
    whole = (finished[0] / checkpoint.NAME).read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "foreign":
        torch.save({"model": {"w": torch.zeros(1)}, "epoch": 3}, path)
    elif damage == "other dictionary":
        torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION}, path)
    else:
        path.write_bytes(b"hello" if damage == "text" else b"")
    assert str(path) in refused(tmp_path, "--resume")


def test_code_in_a_checkpoint_is_not_run(tmp_path, refused):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = tmp_path / checkpoint.NAME
    torch.save({"format": checkpoint.FORMAT, "x": Evil()}, path)
    refused(tmp_path, "--resume")
    assert not (tmp_path / "pwned").exists()


def test_output_that_cannot_be_written(tmp_path, refused):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert f"cannot write to the output folder {blocked}/run" in refused(blocked / "run")


def test_a_disk_that_fills_up_loses_nothing(finished, tmp_path, one_thread):
    """A limit on the size of files prevents the next checkpoint: the last one stays, and a resume continues from it."""
    folder = tmp_path / "full"
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **PROCESS)
    wait_for(process, lambda: in_mid_epoch(folder, 0))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    path = folder / checkpoint.NAME
    before = path.read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    done = subprocess.run(command(folder, "--resume"), capture_output=True, text=True, preexec_fn=limit, **PROCESS)
    assert done.returncode == 1 and f"cannot write {path}: File too large" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before and not list(folder.glob(".*"))
    assert main(command(folder, "--resume")[3:]) == 0
    assert_same_end(folder, finished[0])


def test_a_failed_write_keeps_the_old_file(tmp_path):
    from sewsnn.errors import UserError
    from sewsnn.files import write_atomic

    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=f"cannot write {path}: No space left on device"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_tensorboard_that_cannot_be_written(tmp_path):
    from sewsnn.errors import UserError
    from sewsnn.train.metrics import TensorBoard

    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/tensorboard: "):
        TensorBoard(tmp_path, first_epoch=0)


def test_digits_are_the_real_ones():
    data = create_data("digits", batch_size=100, seed=1, shift=1)
    assert len(data.train_labels) + len(data.test_labels) == 1797
    assert data.test_labels.bincount().min() >= 34
    first = [y for _, y in data.train_batches(0)]
    assert torch.equal(torch.cat(first).sort().values, data.train_labels.sort().values)
    resumed = list(data.train_batches(0, start=3))
    for (x, y), (x_again, y_again) in zip(list(data.train_batches(0))[3:], resumed, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)
    assert not torch.equal(next(iter(data.train_batches(1)))[1], first[0])


def test_shift_moves_whole_images():
    from sewsnn.data.images import shifted

    images = torch.rand(3, 1, 8, 8)
    shifts = torch.tensor([[0, 0], [1, 0], [-1, 1]])
    moved = shifted(images, shifts, 1)
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, 0, 1:], images[1, 0, :-1]) and (moved[1, 0, 0] == 0).all()
    assert torch.equal(moved[2, 0, :-1, 1:], images[2, 0, 1:, :-1])


def test_firing_rates_count_spikes():
    net = create_model("sew_resnet", blocks=[1], widths=[4], num_classes=2, stem="small", T=3)
    rates = firing_rates(net, [torch.rand(4, 3, 8, 8), torch.rand(2, 3, 8, 8)])
    names = [name for name, module in net.named_modules() if isinstance(module, BaseNode)]
    assert list(rates) == names and all(0 <= rate <= 1 for rate in rates.values()) and net.training
    silent = create_model("sew_resnet", blocks=[1], widths=[4], num_classes=2, stem="small")
    torch.nn.init.zeros_(silent.bn1.weight)
    assert firing_rates(silent, [torch.rand(1, 3, 8, 8)])["sn1"] == 0


def test_a_run_begins_with_weights_of_another_dialect(finished, tmp_path, capsys):
    """With learning rate 0 the final weights are those of the file; weights of another network are refused."""
    weights = tmp_path / "authors.pth"
    assert main(["convert-checkpoint", str(finished[0] / checkpoint.NAME), str(weights), "--to", "authors"]) == 0
    begun = command(tmp_path / "run", "--weights", str(weights), "--lr", "0", "--epochs", "1")[3:]
    assert main(begun) == 0 and "dialect 'authors'" in capsys.readouterr().out
    old, new = (checkpoint.load(folder / checkpoint.NAME)["model"] for folder in (finished[0], tmp_path / "run"))
    same = [key for key in old if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(same) == 20 and all(torch.equal(old[key], new[key]) for key in same)
    assert main([*command(tmp_path / "wide", "--weights", str(weights))[3:], "--widths", "[8, 24]"]) == 1
    assert "in the file, [24" in capsys.readouterr().err and not (tmp_path / "wide").exists()
