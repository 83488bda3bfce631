"""Evaluation counts every sample once; each reported number belongs to its time-step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sewsnn.analysis.per_step import PerStep
from sewsnn.train import finished
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.evaluation import evaluate


class Data:
    """A source with logits as samples, in batches of 5, 5 and 3."""

    corrupt, test_steps, to_float = {"a": "damaged"}, 3, staticmethod(lambda x: x)

    def __init__(self, classes=10):
        generator = torch.Generator().manual_seed(0)
        self.x = 3 * torch.randn(13, classes, 1, 1, generator=generator)
        self.y = torch.randint(0, classes, (13,), generator=generator)

    def test_batches(self):
        return zip(self.x.split(5), self.y.split(5), strict=True)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        assert not self.training
        return self.scale * x.flatten(1)


@pytest.mark.parametrize("classes", [10, 3])
def test_accuracies_and_loss_are_of_all_samples(classes):
    data, seen = Data(classes), []
    found = evaluate(Flat(), data, torch.device("cpu"), Processes("cpu"), after_batch=lambda: seen.append(1))
    logits, y = data.x.flatten(1).double(), data.y
    rank = (logits > logits.gather(1, y[:, None])).sum(1)
    assert found["samples"] == 13 and len(seen) == 3
    assert found["loss"] == pytest.approx(cross_entropy(logits, y).item(), rel=1e-9)
    assert found["accuracy"] == pytest.approx((rank == 0).double().mean().item())
    assert found["accuracy5"] == pytest.approx((rank < 5).double().mean().item())


def test_what_is_reported_of_a_step_is_of_that_step(monkeypatch):
    calls = []
    per_step = PerStep(13, [4.0, 3, 2, 1, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.6, 0.7, 0.8, 0.9],
                       {"a": [0.1, 0.2, 0.3, 0.4, 0.5], "b": [0.3] * 5})  # fmt: skip
    monkeypatch.setattr(finished, "evaluate_per_step", lambda model, batches: (list(batches), per_step)[1])
    monkeypatch.setattr(finished, "latency", lambda model, x, t, repeats: calls.append((len(x), t)) or t / 100)
    config = from_dict({"model": {"T": 5}})
    found = finished.evaluate_run(config, Flat(), Data(), [2, 5])
    assert (found["samples"], found["batch"], found["T"], found["left_out"]) == (13, 5, [2, 5], {"a": "damaged"})
    assert (found["loss"], found["accuracy"], found["accuracy5"]) == ([3, 0.5], [0.2, 0.5], [0.6, 0.9])
    assert found["firing_rates"] == {"a": [0.2, 0.5], "b": [0.3, 0.3]}
    assert found["firing_rate"] == pytest.approx([0.25, 0.4])
    assert found["latency"] == [0.02, 0.05] and found["images_per_second"] == pytest.approx([250, 100])
    assert calls == [(5, 2), (5, 5)]
    assert finished.evaluate_run(config, Flat(), Data())["T"] == [1, 2, 4, 5]
    assert finished.evaluate_run(from_dict({"model": {"T": 4}}), Flat(), Data())["T"] == [1, 2, 4]


def test_the_batch_of_a_sequence_is_its_second_dimension(monkeypatch):
    monkeypatch.setattr(finished, "evaluate_per_step", lambda model, batches: PerStep(2, [0.0], [0.0], [0.0], {}))
    monkeypatch.setattr(finished, "latency", lambda *_: 1.0)
    batch = torch.zeros(4, 2, 1, 8, 8), torch.zeros(2)
    data = SimpleNamespace(test_batches=lambda: iter([batch]), to_float=lambda x: x, corrupt={}, test_steps=1)
    found = finished.evaluate_run(from_dict({"model": {"T": 1}}), Flat(), data)
    assert found["batch"] == 2 and found["images_per_second"] == [2.0] and found["firing_rate"] == [0]
