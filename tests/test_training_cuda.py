"""The training loop on a GPU: no synchronisation, streams, CUDA graphs, precision, and that it learns."""

import json
from pathlib import Path

import pytest
import torch
from devices import PRETENDED

from benchmarks.gpu.graph import compare_bits
from sewsnn.cli import main
from sewsnn.errors import UserError
from sewsnn.models import create_model
from sewsnn.train import build, graph
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.prefetch import Prefetch
from sewsnn.train.schedule import set_lr
from sewsnn.train.step import Step
from sewsnn.train.sums import Sums

CONFIG = str(Path(__file__).parent.parent / "configs" / "digits.yaml")
#: A smaller network for the pretended device (tests/device), which takes hundreds of times as long as a GPU.
SMALLER = ["--widths", "[8]", "--blocks", "[1]", "--T", "2", "--batch_size", "50"] if PRETENDED else []

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


def test_replayed_steps_equal_eager_steps_bit_for_bit():
    compare_bits("cuda")


def test_a_replay_does_not_wait_for_the_gpu():
    stepper, batches = steps(train={"cuda_graph": True, "amp": "fp16", "ema": 0.9}, loss={"mixup": 0.2})
    sums = Sums(torch.device("cuda"))
    for step, (x, y) in enumerate((x.cuda(), y.cuda()) for x, y in batches):
        torch.cuda.set_sync_debug_mode("error" if step > graph.WARM_UP else "default")
        set_lr(stepper.optimizer, 1 / (1 + step))
        stepper.run(x, y, 0, step, 1, True, sums)
    torch.cuda.set_sync_debug_mode("default")
    assert stepper.graphed.captures == 1 and stepper.graphed.replays == len(batches) - graph.WARM_UP
    stepper.check(sums, 0, lambda _: None)
    assert sums.values(stepper.processes)["samples"] == 64


def test_replays_draw_the_same_random_numbers():
    """The generator advances with each replay as with the eager step."""
    seen = []
    for graphs in (False, True):
        stepper, batches = steps(train={"cuda_graph": graphs}, optimizer={"lr": 0.125})
        stepper.model.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), stepper.model.fc)
        torch.cuda.manual_seed(1)
        for step, (x, y) in enumerate(batches):
            stepper.run(x.cuda(), y.cuda(), 0, step, 1, True, Sums(torch.device("cuda")))
        seen.append(torch.cuda.get_rng_state())
    assert torch.equal(*seen)


def test_a_step_that_waits_cannot_be_captured_and_the_gpu_stays_usable():
    stepper, batches = steps(train={"cuda_graph": True})
    stepper.model.register_forward_hook(lambda module, inputs, output: output * (output.sum().item() != 0.123))
    stream = torch.cuda.current_stream()
    with pytest.raises(UserError, match=r"cuda_graph: the training step cannot be captured .*captur.*\.item\(\)"):
        for step, (x, y) in enumerate(batches):
            stepper.run(x.cuda(), y.cuda(), 0, step, 1, True, Sums(torch.device("cuda")))
    assert step == graph.WARM_UP and torch.cuda.current_stream() == stream
    assert torch.ones(3, device="cuda").sum().item() == 3


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
        ("--cuda_graph", "true", "--amp", "fp16", "--ema", "0.9", "--schedule.every", "step"),
        ("--compile", "default", "--drop_last", "true"),
        ("--compile", "reduce-overhead", "--drop_last", "true", "--amp", "bf16"),
    ],
    ids=["fp16", "bf16 channels_last", "whole step captured", "compiled", "CUDA graphs"],
)
def test_digits_are_learnt(words, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", CONFIG, "--output", str(folder), "--device", "cuda", "--epochs", "6", *words]) == 0
    assert json.loads((folder / "result.json").read_text())["best_test_accuracy"] > 0.9
    assert main(["eval", str(folder), "--json", str(tmp_path / "eval.json")]) == 0


@pytest.mark.parametrize("graphs", ["false", "true"])
def test_a_run_goes_on_with_the_same_bits(graphs, request, tmp_path):
    """With ``train.deterministic``, a run that stops after an epoch and resumes equals an uninterrupted run."""
    if PRETENDED:
        request.getfixturevalue("few_digits")
    words = ["--device", "cuda", "--deterministic", "true", "--schedule.name", "constant", "--amp", "fp16"]
    words += [*SMALLER, "--cuda_graph", graphs]
    try:
        for name, epochs in (("whole", "2"), ("cut", "1")):
            assert main(["train", CONFIG, "--output", str(tmp_path / name), *words, "--epochs", epochs]) == 0
        assert main(["train", CONFIG, "--output", str(tmp_path / "cut"), *words, "--epochs", "2", "--resume"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (torch.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)
