"""One process at a time writes into a folder; a killed one leaves no lock."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import yaml
from filelock import FileLock
from runs import CONFIG, PROCESS, command, rows, wait_for
from thorough import THOROUGH

from sewsnn import locking
from sewsnn.cli import main
from sewsnn.data.preparing import prepare
from sewsnn.errors import UserError
from sewsnn.locking import NAME, FolderLock
from sewsnn.train import checkpoint
from sewsnn.train.config import load_config
from sewsnn.train.loop import Trainer

SHORT = ["--epochs", "1", "--batch_size", "256", "--checkpoint_steps", "1", "--keep", "1"]


def start(queue, barrier, folder, seed):
    """Starts a training in a separate process, at the same time as another one."""
    errors = io.StringIO()
    barrier.wait()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = main(command(folder, *SHORT, "--seed", str(seed))[3:])
    queue.put((seed, status, errors.getvalue()))


def test_of_two_trainings_at_once_one_is_refused_and_the_other_is_whole(tmp_path):
    """Repeats this 3 times, or 10 times in a thorough run. Every file belongs to the seed that was not refused."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["sewsnn.cli", "sewsnn.train.loop", "torch.utils.tensorboard", "matplotlib.figure"])
    for turn in range(10 if THOROUGH else 3):
        folder, queue, barrier = tmp_path / str(turn), fork.Queue(), fork.Barrier(2)
        pair = [fork.Process(target=start, args=(queue, barrier, folder, seed)) for seed in (1, 2)]
        for process in pair:
            process.start()
        ends = sorted((queue.get(timeout=240) for _ in pair), key=lambda end: end[1])
        for process in pair:
            process.join()
        (seed, status, _), (_, refused, error) = ends
        assert (status, refused) == (0, 1), ends
        assert error.startswith(f"sewsnn: error: {folder} ") and error.count("\n") == 1, error
        assert "by another process" in error or "already holds a run" in error, error  # it may have ended before
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
        assert checkpoint.load(folder / checkpoint.NAME)["config"]["seed"] == seed
        assert len(rows(folder)) == 1 and json.loads((folder / "result.json").read_text())
        assert not list(folder.glob(".*"))


def test_two_commands(tmp_path):
    """Starts processes as a shell does with ``A & B``."""
    folder = tmp_path / "x"
    words = [command(folder, *SHORT, "--seed", seed) for seed in ("1", "2")]
    both = [subprocess.Popen(line, stdout=-1, stderr=-1, text=True, **PROCESS) for line in words]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], errors


@contextlib.contextmanager
def running(folder, *more):
    process = subprocess.Popen(command(folder, "--epochs", "500", *more), stdout=-1, stderr=-1, **PROCESS)
    try:
        wait_for(process, lambda: (folder / checkpoint.NAME).exists())
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def content(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir() if not path.name.startswith(".check")}


def test_a_live_run_is_left_alone_and_a_killed_one_leaves_no_lock(tmp_path, capsys):
    """The lock holds under every name of the folder and with every option. Then the next process continues at once."""
    folder, link = tmp_path / "run", tmp_path / "link"
    link.symlink_to(folder)
    with running(folder) as process:
        process.send_signal(signal.SIGSTOP)  # so that nothing changes by itself
        before = content(folder)
        for more in (["--resume", "auto"], ["--resume"], []):
            for name in (folder, link, folder / ".." / "run"):
                assert main(command(name, "--epochs", "500", *more)[3:]) == 1
                error = capsys.readouterr().err
                assert f"{name} is being trained in by another process (process {process.pid} on " in error, error
        assert content(folder) == before
        process.send_signal(signal.SIGCONT)
    trainer = Trainer(load_config(folder / "config.yaml"), resume=True)
    with pytest.raises(UserError, match="is being trained in by this process itself"):
        Trainer(load_config(folder / "config.yaml"), resume=True)
    trainer.close()
    Trainer(load_config(folder / "config.yaml"), resume=True).close()
    assert not (folder / NAME).exists()


def test_a_training_that_ended_has_no_lock(tmp_path, one_thread):
    """A run that ended, in any way, releases its folder. Its Trainer may continue if no other process has it."""
    words = {"output": str(tmp_path / "run"), "epochs": "1", "blocks": "[1]", "widths": "[8]", "batch_size": "256"}
    config = load_config(CONFIG, words)
    first = Trainer(config)
    first.run()
    assert not (tmp_path / "run" / NAME).exists()
    second = Trainer(config, resume=True)
    with pytest.raises(UserError, match="by this process itself"):
        first.run()
    del second  # it was never run
    first.run()


@pytest.mark.parametrize("end", ["release", "kill"])
def test_a_lock_file_that_goes_while_it_is_opened(tmp_path, monkeypatch, end):
    """The owner removes the lock file after another process has opened it and before that process locks it."""
    first, second = FolderLock(tmp_path, "trained in").acquire(), FolderLock(tmp_path, "trained in")
    real = locking.lock_descriptor

    def late(handle, **options):
        if first._handle is not None:
            first.release()
        return real(handle, **options)

    monkeypatch.setattr(locking, "lock_descriptor", late)
    second.acquire()
    monkeypatch.undo()
    with pytest.raises(UserError, match="is being trained in"):
        FolderLock(tmp_path, "trained in").acquire()
    if end == "release":
        second.release()
    else:
        os.close(second._handle)  # as the system does; the file stays
        second._handle = None
        assert (tmp_path / NAME).exists()
    with FolderLock(tmp_path, "prepared"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_give_back_its_parents_lock(tmp_path):
    with FolderLock(tmp_path, "prepared") as lock:
        if (child := os.fork()) == 0:
            lock.release(unused=True)
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(UserError, match="is being prepared by this process itself"):
            FolderLock(tmp_path, "prepared").acquire()


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_what_is_no_lock_file_is_not_opened(tmp_path, kind):
    (tmp_path / "run").mkdir()
    if kind == "fifo":
        os.mkfifo(tmp_path / "run" / NAME)
    else:
        (tmp_path / "run" / NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"cannot write .*run/.lock: (it is a FIFO|Too many levels)"):
        FolderLock(tmp_path / "run", "trained in").acquire()
    assert not (tmp_path / "mine").exists()


def test_workers_that_outlive_a_killed_run_do_not_keep_the_lock(tmp_path):
    """A forked process inherits the open files of its parent, but not the lock."""
    code = (
        "import os, sys, time; from pathlib import Path; from sewsnn.locking import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]), 'trained in').acquire()\n"
        "if (child := os.fork()) == 0: time.sleep(300); os._exit(0)\n"
        "print(child, flush=True); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, **PROCESS)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    FolderLock(tmp_path, "trained in").acquire().release()
    os.kill(child, signal.SIGKILL)  # an error if the lock had waited for the fork to end


def test_nothing_is_left_of_a_folder_that_was_refused(tmp_path, capsys):
    """A refused start leaves neither the lock file nor new folders."""
    new = tmp_path / "a" / "b"
    assert main(["train", str(CONFIG), "--output", str(new), "--resume"]) == 1
    assert main(["train", str(CONFIG), "--output", str(new), "--data.name", "imagenet", "--data.root", "nope"]) == 1
    assert list(tmp_path.iterdir()) == []
    held = tmp_path / "held"
    held.mkdir()
    (held / "config.yaml").write_text("mine")
    assert main(["train", str(CONFIG), "--output", str(held)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert [path.name for path in held.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["imagenet", "cifar10_dvs"])
def test_preparing_takes_the_same_lock(tmp_path, name):
    root, out = tmp_path / "root", tmp_path / "out"
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for folder in [*(root / s / "n01" for s in ("train", "val")), *(root / c for c in classes)]:
        folder.mkdir(parents=True)
        for file in ("a.JPEG", "cifar10_x_0.aedat"):
            (folder / file).write_bytes(b"")
    out.mkdir()
    with FileLock(out / NAME), pytest.raises(UserError, match="out is being prepared by another process"):
        prepare(name, root, out)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import errno

    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locking, "lock_descriptor", refuse)
    with pytest.warns(UserWarning, match="has no locks"), FolderLock(tmp_path, "trained in"):
        assert list(tmp_path.iterdir()) == []
