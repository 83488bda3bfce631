"""The training loop on a GPU: no synchronisation, streams, CUDA graphs, precision, and that it learns."""

import json
from pathlib import Path

import pytest
import torch

from sewsnn.cli import main
from sewsnn.models import create_model
from sewsnn.train import build
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.prefetch import Prefetch
from sewsnn.train.step import Step
from sewsnn.train.sums import Sums

CONFIG = str(Path(__file__).parent.parent / "configs" / "digits.yaml")

pytestmark = pytest.mark.cuda  # conftest.py leaves the file out without a CUDA device


@pytest.fixture(autouse=True)
def _on_cuda():
    yield
    torch.cuda.set_sync_debug_mode("default")


def steps(**settings):
    """Returns the training step of a small network, and batches for it."""
    config = from_dict({"optimizer": {"lr": 0.1}, **settings})
    torch.manual_seed(0)
    model = create_model("sew_resnet", blocks=[1], widths=[8], num_classes=5, stem="small", T=2).cuda()
    stepper = Step(config, model, build.build_optimizer(config, model), Processes("cuda"), 5)
    batches = [(torch.rand(8, 3, 16, 16), torch.arange(8) % 5) for _ in range(8)]
    return stepper, batches


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"amp": "fp16", "ema": 0.9}},
        {"train": {"amp": "bf16", "accumulate": 2}, "optimizer": {"lr": 0.1, "clip_norm": 1.0}},
        {"loss": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}},
        {"loss": {"name": "tet"}, "optimizer": {"name": "adamw", "lr": 0.01, "decay_norms": False}},
    ],
    ids=["fp16 ema", "bf16 accumulated clipped", "mixed", "tet adamw"],
)
def test_a_step_does_not_wait_for_the_gpu(settings):
    """No step after the first one synchronises; otherwise the GPU would be idle between two steps."""
    stepper, batches = steps(**settings)
    sums, every = Sums(torch.device("cuda")), stepper.config.train.accumulate
    for step, (x, y) in enumerate((x.cuda(), y.cuda()) for x, y in batches):
        torch.cuda.set_sync_debug_mode("error" if step >= 2 * every else "default")
        stepper.run(x, y, 0, step, every, step % every == every - 1, sums)
    torch.cuda.set_sync_debug_mode("default")
    stepper.check(sums, 0, lambda _: None)
    assert sums.values(stepper.processes)["samples"] == 64


def test_batches_arrive_whole():
    """Batches are copied on a separate stream during computation; every number must arrive before it is read."""
    batches = [(torch.full((64, 3, 64, 64), float(i)).pin_memory(), torch.tensor([i])) for i in range(20)]
    weight = torch.rand(2048, 2048, device="cuda")
    for i, (x, _) in enumerate(Prefetch(batches, torch.device("cuda"), torch.Tensor.float, channels_last=True)):
        for _ in range(5):
            weight = weight @ weight / 1024  # the computing stream is behind
        assert (x == i).all() and x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "words",
    [
        ("--amp", "fp16"),
        ("--amp", "bf16", "--channels_last", "true", "--ema", "0.9", "--accumulate", "2", "--batch_size", "16"),
        ("--compile", "default", "--drop_last", "true"),
        ("--compile", "reduce-overhead", "--drop_last", "true", "--amp", "bf16"),
    ],
    ids=["fp16", "bf16 channels_last", "compiled", "CUDA graphs"],
)
def test_digits_are_learnt(words, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", CONFIG, "--output", str(folder), "--device", "cuda", "--epochs", "6", *words]) == 0
    assert json.loads((folder / "result.json").read_text())["best_test_accuracy"] > 0.9
    assert main(["eval", str(folder), "--json", str(tmp_path / "eval.json")]) == 0


def test_a_run_goes_on_with_the_same_bits(tmp_path):
    """With ``train.deterministic``, a run that stops after an epoch and resumes equals an uninterrupted run."""
    words = ["--device", "cuda", "--deterministic", "true", "--schedule.name", "constant", "--amp", "bf16"]
    try:
        for name, epochs in (("whole", "2"), ("cut", "1")):
            assert main(["train", CONFIG, "--output", str(tmp_path / name), *words, "--epochs", epochs]) == 0
        assert main(["train", CONFIG, "--output", str(tmp_path / "cut"), *words, "--epochs", "2", "--resume"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (torch.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)
