"""A smaller ImageNet recipe on image files: both loaders train, and a killed run ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jpeg_tree
import pytest
import torch

from sewsnn.cli import main
from sewsnn.train import checkpoint

RECIPE = Path(__file__).parent.parent / "configs" / "imagenet" / "sew_resnet18.yaml"
jpeg_tree.need_torchvision()


# Runs the command line and kills it when it asks for the last of six batches.
KILLED = """
import os, signal, sys
from sewsnn.cli import main
from sewsnn.data.loading import LoadedSource

whole = LoadedSource.train_batches

def train_batches(self, epoch, start=0):
    for step, batch in enumerate(whole(self, epoch, start)):
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

LoadedSource.train_batches = train_batches
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return jpeg_tree.make_tree(tmp_path_factory.mktemp("imagenet"))


def words(tree, output, loader: str, *more: str) -> list[str]:
    small = ["--image_size", "32", "--resize", "36", "--model.T", "2", "--batch_size", "4", "--epochs", "1"]
    small += ["--amp", "off", "--device", "cpu", "--threads", "1", "--workers", "0", "--loader", loader]
    small += ["--model.name", "sew_resnet", "--blocks", "[1, 1]", "--widths", "[8, 16]"]
    return ["train", str(RECIPE), "--output", str(output), "--data.root", str(tree), *small, *more]


def weights(output):
    return checkpoint.load(output / checkpoint.NAME)["model"]


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_a_killed_run_goes_on_to_the_same_bits(tree, tmp_path, loader, capsys):
    if loader == "dali":
        import test_dali  # noqa: F401  (skips where DALI is not installed)
    every = ("--checkpoint_steps", "2")
    assert main(words(tree, tmp_path / "whole", loader, *every)) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 1 and not result["generated_data"]
    whole = weights(tmp_path / "whole")
    assert whole["fc.weight"].shape == (3, 16)  # the number of classes comes from the files

    output = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", KILLED, *words(tree, output, loader, *every)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (output / checkpoint.NAME).exists() and not (output / "result.json").exists()
    assert not all(torch.equal(whole[name], value) for name, value in weights(output).items())

    assert main([*words(tree, output, loader, *every), "--resume"]) == 0, capsys.readouterr().err
    resumed = weights(output)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert json.loads((output / "result.json").read_text())["test_accuracy"] == result["test_accuracy"]


def test_workers_change_no_weight(tree, tmp_path, capsys):
    """Augmentation does not depend on it either, because each sample has its own random numbers."""
    found = []
    for workers in ("0", "2"):
        output = tmp_path / workers
        more = ("--workers", workers, "--augment", "trivial", "--erase", "0.5")
        assert main(words(tree, output, "torchvision", *more)) == 0, capsys.readouterr().err
        found.append(weights(output))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_damaged_file_ends_the_run_with_its_name(tmp_path, capsys):
    tree = jpeg_tree.make_tree(tmp_path / "tree", train=3, val=1)
    path = sorted((tree / "train").rglob("*.JPEG"))[2]
    path.write_bytes(path.read_bytes()[:700])
    assert main(words(tree, tmp_path / "run", "torchvision")) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith(f"sewsnn: error: {path} is a damaged image: ") and "Traceback" not in str(errors)
    whole_network = ("--model.name", "sew_resnet18", "--blocks", "[]", "--widths", "[]")
    assert main(words(tree, tmp_path / "skip", "torchvision", "--on_corrupt", "skip", *whole_network)) == 0
    assert weights(tmp_path / "skip")["fc.weight"].shape == (3, 512)
