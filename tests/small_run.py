"""A finished run, trained in a second in this process, for tests that read a run."""

import contextlib

import torch
from runs import CONFIG

from sewsnn.cli import main
from sewsnn.train import checkpoint

WORDS = ["--blocks", "[1]", "--widths", "[4]", "--T", "2", "--epochs", "2", "--batch_size", "512", "--threads", "1"]
WORDS += ["--ema", "0.9", "--keep", "2", "--checkpoint_steps", "0"]


@contextlib.contextmanager
def same_threads():
    """Restores the number of threads, because runs set it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make(folder):
    with same_threads():
        assert main(["train", str(CONFIG), "--output", str(folder), *WORDS]) == 0
    return folder


def resume(folder, how, capsys):
    """Runs ``--resume`` or ``--resume=auto`` and returns status, output and errors."""
    capsys.readouterr()
    with same_threads():
        status = main(["train", str(CONFIG), "--output", str(folder), *WORDS, how])
    return status, *capsys.readouterr()


def error_of(words, capsys):
    """Returns the one line of error with which a command ends."""
    capsys.readouterr()
    with same_threads():
        assert main([str(word) for word in words]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("sewsnn: error: ") and "Traceback" not in err, err
    return err


def names(folder):
    return sorted(path.name for path in folder.iterdir())


CHECKPOINT = checkpoint.NAME
