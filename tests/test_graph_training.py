"""Whole runs with ``train.cuda_graph``, with a tape of operations in place of the CUDA graph."""

import os
import signal

import pytest
import torch
from runs import CONFIG, assert_same_end, rows

from sewsnn.cli import main
from sewsnn.train import build, checkpoint
from sewsnn.train.schedule import factor
from sewsnn.train.schema import ScheduleConfig
from sewsnn.train.step import Step

# A warning says that a graph is captured again, for which no run here has a reason.
pytestmark = [pytest.mark.usefixtures("one_thread", "few_digits"), pytest.mark.filterwarnings("error:train.cuda_graph")]

WORDS = ["--blocks", "[1]", "--widths", "[4]", "--T", "2", "--epochs", "2", "--batch_size", "32", "--threads", "1"]
GRAPHS = ["--cuda_graph", "true"]
#: fp16 with all that a step can do; the last batch of an epoch is smaller
FP16 = ["--amp", "fp16", "--ema", "0.9", "--clip_norm", "1.0", "--schedule.every", "step"]
CUT = ["--accumulate", "2", "--mixup", "0.3", "--keep", "1", "--checkpoint_steps", "3"]


@pytest.fixture
def fused(monkeypatch):
    """Gives eager runs a fused optimizer, as on a GPU."""
    build_optimizer = build.build_optimizer

    def with_fused(config, model):
        graphs, config.train.cuda_graph = config.train.cuda_graph, True
        optimizer = build_optimizer(config, model)
        config.train.cuda_graph = graphs
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if graphs else config.optimizer.lr
        return optimizer

    monkeypatch.setattr(build, "build_optimizer", with_fused)


def train(folder, *words):
    return main(["train", str(CONFIG), "--output", str(folder), *WORDS, *words])


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.fixture
def whole(runs, tape, tmp_path_factory):
    """Returns the folder of a whole run with graphs and these words, and its tape. The run is made once."""

    def run(words):
        if str(words) not in runs:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert train(folder, *words, *GRAPHS) == 0
            runs[str(words)] = folder, tape
        return runs[str(words)]

    return run


@pytest.mark.parametrize("words", [[], FP16, CUT], ids=["float32", "fp16", "accumulated"])
def test_a_run_with_graphs_equals_an_eager_run(words, tape, fused, whole, tmp_path):
    """Weights, averages, momentum, loss scale and all metrics, bit for bit."""
    assert train(tmp_path / "eager", *words) == 0 and not tape.warm_ups
    graphs, its_tape = whole(words)
    assert its_tape.tapes and its_tape.warm_ups
    assert_same_end(tmp_path / "eager", graphs, 2)
    a, b = (checkpoint.load(folder / checkpoint.NAME) for folder in (tmp_path / "eager", graphs))
    assert a["scaler"] == b["scaler"]
    assert {k: v for k, v in a["running"].items() if k not in ("seconds", "waited")} == {
        k: v for k, v in b["running"].items() if k not in ("seconds", "waited")
    }


@pytest.mark.parametrize(
    "words, at", [(FP16, 2), (FP16, 11), (CUT, 6)], ids=["warm-up", "second epoch", "between replays"]
)
def test_a_stopped_run_goes_on_with_the_same_bits(words, at, tape, whole, monkeypatch, tmp_path, capsys):
    uncut, _ = whole(words)
    run, count = Step.run, 0

    def stopped(self, *arguments):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, *arguments)

    monkeypatch.setattr(Step, "run", stopped)
    assert train(tmp_path / "cut", *words, *GRAPHS) == 130
    assert checkpoint.load(tmp_path / "cut" / checkpoint.NAME)["epoch"] == (0 if at < 8 else 1)
    assert train(tmp_path / "cut", *words, *GRAPHS, "--resume") == 0
    assert_same_end(uncut, tmp_path / "cut", 2)


def test_learning_rates_in_files_are_those_of_the_schedule(tape, tmp_path):
    """The row of an epoch has the learning rate of its last optimizer step, not rounded to float32."""
    words = ["--schedule.every", "step", "--optimizer.lr", "0.3", "--accumulate", "2"]
    assert train(tmp_path / "run", *GRAPHS, *words) == 0
    schedule = ScheduleConfig(every="step")  # 8 batches are 4 optimizer steps; the last begins with the seventh
    assert [float(r["lr"]) for r in rows(tmp_path / "run")] == [0.3 * factor(schedule, 2, e + 6 / 8) for e in (0, 1)]
    groups = checkpoint.load(tmp_path / "run" / checkpoint.NAME)["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is float for group in groups)


def test_a_run_on_a_cpu_ends_before_it_writes_anything(tmp_path, capsys):
    assert train(tmp_path / "run", *GRAPHS, "--device", "cpu") == 1
    assert "error: train.cuda_graph: true needs a GPU, but this run is on cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluation_does_not_need_a_gpu(whole, monkeypatch, capsys):
    """A run with graphs can be evaluated anywhere."""
    run, _ = whole([])
    monkeypatch.undo()
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    assert torch.get_num_threads() == 1
