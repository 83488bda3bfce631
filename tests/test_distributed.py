"""Training with several processes (gloo, on the CPU) that torchrun starts, as for users."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from runs import PROCESS, assert_same_end, command, in_mid_epoch, rows, wait_for

from sewsnn.data.images import ImagesInMemory
from sewsnn.data.source import Options
from sewsnn.errors import ConfigError
from sewsnn.layers import convert_sync_batchnorm
from sewsnn.models import create_model
from sewsnn.train import build, checkpoint, signals
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.meeting import agree
from sewsnn.train.nonfinite import NonFinite
from sewsnn.train.step import Step
from sewsnn.train.sums import Sums

# Spikes are discontinuous: only where rounding is tiny do runs that add in another order stay together.
IN_FLOAT64 = """
import sys, torch
from sewsnn.cli import main
from sewsnn.data.images import ImagesInMemory
torch.set_default_dtype(torch.float64)
ImagesInMemory.to_float = lambda self, x: x.double()
sys.exit(main(sys.argv[1:]))
"""


def torchrun(words, *options):
    """Returns the command that starts two processes of ``python words``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    return [*launcher, *words]


def train(output, *more):
    return command(output, *more)[1:]  # without the interpreter


def two(output, *more, options=()):
    words = train(output, "--batch_size", "16", "--epochs", "2", "--drop_last", "true", *more)
    return torchrun(words, *options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of two processes, with a moving average."""
    folder = tmp_path_factory.mktemp("two") / "whole"
    done = subprocess.run(two(folder, "--ema", "0.9"), capture_output=True, text=True, timeout=300, **PROCESS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1 and "2 processes" in done.stdout
    return folder


def test_what_two_processes_leave(whole):
    """There is one set of files, with sums over both processes: all training samples, and each test sample once."""
    assert len(rows(whole)) == 2 and len(list((whole / "tensorboard").glob("events*"))) == 1
    saved = checkpoint.load(whole / checkpoint.NAME)
    assert saved["world"] == 2 and len(saved["rng"]) == 2
    assert float(rows(whole)[-1]["test_accuracy"]) * 360 == pytest.approx(
        round(float(rows(whole)[-1]["test_accuracy"]) * 360), abs=1e-6
    )
    assert float(rows(whole)[-1]["average_accuracy"]) > 0


def test_two_processes_are_one(tmp_path):
    """With shared batch statistics, two processes reach the weights of one process on the joined batch."""
    script = tmp_path / "float64.py"
    script.write_text(IN_FLOAT64)
    ends = []
    for world, batch in ((1, 32), (2, 16)):
        folder = tmp_path / str(world)
        words = train(folder, "--batch_size", str(batch), "--epochs", "1", "--drop_last", "true", "--sync_bn", "true")
        words = [str(script), *words[words.index("train") :]]
        words = [sys.executable, *words] if world == 1 else torchrun(words)
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, **PROCESS)
        assert done.returncode == 0, done.stderr
        ends.append((checkpoint.load(folder / checkpoint.NAME), rows(folder)[0]))
    (one, row_one), (both, row_two) = ends
    for name, value in one["model"].items():
        torch.testing.assert_close(both["model"][name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("train_loss", "train_accuracy", "train_accuracy5", "test_loss", "test_accuracy", "lr"):
        assert float(row_one[name]) == pytest.approx(float(row_two[name]), rel=1e-8), name


def workers_of(pid: int) -> list[int]:
    """Returns the training processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"sewsnn.cli" in words:
            found.append(int(path.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
def test_one_of_two_is_killed_and_the_run_goes_on(whole, tmp_path):
    """torchrun starts both again, they go on from the checkpoint, and end bit for bit as if nothing had happened."""
    folder = tmp_path / "killed"
    words = two(folder, "--ema", "0.9", "--resume", "auto", options=["--max-restarts=2"])
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **PROCESS)
    wait_for(process, lambda: in_mid_epoch(folder, 0))
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert b"resumed at epoch 1, step" in output
    assert_same_end(folder, whole, epochs=2)


def test_sigterm_saves_both_and_other_processes_go_on(whole, tmp_path):
    """SIGTERM to torchrun: both save, at the same step. One process with the joined batch goes on from there, and with
    half of it (a group that shrank), which it says; with another batch size it is refused."""
    folder = tmp_path / "stopped"
    words = two(folder, "--ema", "0.9", "--checkpoint_steps", "0", "--epochs", "5")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **PROCESS)
    wait_for(process, lambda: (folder / checkpoint.NAME).exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    saved = checkpoint.load(folder / checkpoint.NAME)
    assert saved["epoch"] < 5 and saved["samples"] == saved["step"] * 32
    shutil.copytree(folder, tmp_path / "shrunk")
    epochs = str(saved["epoch"] + 1)

    def resumed(folder, batch, *more):
        options = ["--epochs", "5", "--drop_last", "true", "--ema", "0.9", "--resume", *more]
        words = train(folder, "--batch_size", batch, *options)
        # One epoch is enough: what follows it is cut off.
        code = "import sys; from sewsnn.train.loop import Trainer; save = Trainer.save\n"
        code += f"Trainer.save = lambda self: (save(self), self.epoch >= {epochs} and sys.exit(0))\n"
        code += "from sewsnn.cli import main; sys.exit(main(sys.argv[1:]))"
        words = [sys.executable, "-c", code, *words[words.index("train") :]]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, **PROCESS)

    refused = resumed(folder, "24")
    assert refused.returncode == 1 and "other settings (data.batch_size)" in refused.stderr
    done = resumed(folder, "32")
    assert done.returncode == 0, done.stderr
    assert "with 1 processes instead of 2, and 32 samples per optimizer step instead of 32\n" in done.stdout
    shrunk = resumed(tmp_path / "shrunk", "16")
    assert shrunk.returncode == 0, shrunk.stderr
    assert "16 samples per optimizer step instead of 32 (the learning rate is not changed)\n" in shrunk.stdout
    for end in (folder, tmp_path / "shrunk"):
        assert checkpoint.load(end / checkpoint.NAME)["epoch"] == saved["epoch"] + 1


def test_shares_are_a_partition():
    """Every sample of a batch and of the test set is on exactly one process; shares of a batch have equal sizes."""
    for world in (1, 2, 3, 7):
        for samples in (1, 5, 20, 23):
            ranks = [Options(batch_size=3, seed=0, rank=rank, world=world) for rank in range(world)]
            assert [i for o in ranks for i in o.test_share(samples)] == list(range(samples))
            seen = []
            for step in range(ranks[0].steps(samples)):
                shares = [list(o.share(step, samples)) for o in ranks]
                assert len({len(s) for s in shares}) == 1 and len(shares[0]) >= 1
                seen += [i for share in shares for i in share]
            assert seen == list(range(len(seen))) and samples - len(seen) < world


def _loss_of_one(rank, port, folder):
    """One of two processes with shared batch statistics: the batch of the second one is not finite."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    processes = Processes("cpu")
    config = from_dict({"train": {"sync_bn": True}})
    model = create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3, stem="small", T=2)
    convert_sync_batchnorm(model)
    step = Step(config, model, build.build_optimizer(config, model), processes, 3)
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    sums = Sums(torch.device("cpu"))
    sums.add(torch.tensor(float("nan") if rank else 1.0), torch.zeros(4, 3), y, 6)
    try:
        step.check(sums, 0, lambda _: (x / 0 if rank else x, y))
    except NonFinite as error:
        (folder / str(rank)).write_text(str(error))
    processes.leave()


def test_a_loss_of_one_process_ends_all(tmp_path):
    """Both stop at the same step; neither waits for the other while it searches the layer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_loss_of_one, (port, tmp_path), nprocs=2)
    first, second = ((tmp_path / name).read_text() for name in "01")
    assert first.startswith("epoch 1, step 7: the loss of another process is not finite; a repeat of the batch is")
    assert second.startswith("epoch 1, step 7: the loss is not finite; the first such value is in the batch itself")


def test_fewer_test_samples_than_processes():
    """A process without samples gets no batch instead of an empty one."""
    images, labels = torch.zeros(8, 1, 2, 2), torch.arange(8)
    for rank in range(4):
        options = Options(batch_size=2, seed=0, rank=rank, world=4)
        source = ImagesInMemory((images, labels), (images[:3], labels[:3]), 8, options)
        assert [len(y) for _, y in source.test_batches()] == [1] * source.test_steps == [1] * (rank > 0)


def test_processes_started_again_do_not_meet_the_dead():
    """The store still has the entries of an earlier start; the others wait for the late rank 0."""
    store, timeout = torch.distributed.HashStore(), timedelta(seconds=30)
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            late = [pool.submit(agree, store, rank, 3, timeout) for rank in (1, 2)]
            time.sleep(0.2)
            first = agree(store, 0, 3, timeout)
            assert [other.result() for other in late] == [first, first]
            names.append(first)
    assert names[0] != names[1]
    with pytest.raises(RuntimeError, match="does not answer"):
        agree(store, 1, 3, timedelta(seconds=0.1))
    with pytest.raises(RuntimeError, match="not all processes arrived"):
        agree(store, 0, 3, timedelta(seconds=0.1))


def test_an_error_of_one_process_is_not_held_up(monkeypatch):
    """NCCL ends a group only with all processes, and the others may never come."""
    ended = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
    for failed, host, expected in ((True, "gloo", []), (True, None, [True]), (False, "gloo", [True])):
        ended.clear()
        processes = Processes("cpu")
        processes._joined, processes._host = True, host
        processes.leave(failed)
        assert ended == expected


def test_signals_that_come_twice(monkeypatch):
    """Signals of torchrun and of the batch system count as one. A later signal ends the process at once."""
    now, ended = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.os, "kill", lambda pid, number: ended.append(number))
    before = signal.getsignal(signal.SIGTERM)
    with signals.Signals() as received:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert received.name == "SIGTERM" and not ended
        now[0] += 3
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_places_that_make_no_sense():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "two")
        with pytest.raises(ConfigError, match=r"RANK, WORLD_SIZE and LOCAL_RANK must be numbers.*WORLD_SIZE=two"):
            Processes("cpu")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
            patch.setenv(name, value)
        with pytest.raises(ConfigError, match=r"train\.device must be cuda with 2 processes"):
            Processes("cuda:1")
        patch.delenv("MASTER_ADDR", raising=False)
        with pytest.raises(ConfigError, match=r"cannot join the other 1 process\(es\): .*MASTER_ADDR"):
            Processes("cpu")
