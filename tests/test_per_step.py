"""Latency is of T time-steps and of the calls after the warm-up; accuracies of several batches weigh their samples."""

import pytest
import torch
from torch import nn

from sewsnn.analysis import firing_rates, per_step
from sewsnn.models import create_model


class Recorder(nn.Module):
    """Records its calls; call number n takes n seconds."""

    def __init__(self):
        super().__init__()
        self.T, self.calls, self.now = 7, [], 0.0

    def forward(self, x):
        assert not self.training
        self.calls.append((self.T, tuple(x.shape)))
        self.now += len(self.calls)


@pytest.mark.parametrize("shape, seen", [((2, 3, 8, 8), (2, 3, 8, 8)), ((5, 2, 3, 8, 8), (4, 2, 3, 8, 8))])
def test_latency_is_the_median_of_the_calls_after_two(shape, seen, monkeypatch):
    model = Recorder()
    monkeypatch.setattr(per_step.time, "perf_counter", lambda: model.now)
    assert per_step.latency(model, torch.zeros(shape), 4, repeats=3) == 4.0  # of 3, 4 and 5
    assert model.calls == [(4, seen)] * 5 and model.T == 7 and model.training
    model.calls.clear()
    assert per_step.latency(model, torch.zeros(shape), 4) == 7.5 and len(model.calls) == 12


def test_a_sequence_too_short_is_said_and_t_is_put_back_after_an_error():
    model = Recorder()
    with pytest.raises(ValueError, match="at least T = 4 frames, got 3"):
        per_step.latency(model, torch.zeros(3, 2, 3, 8, 8), 4)
    model.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        per_step.latency(model, torch.zeros(2, 3, 8, 8), 4)
    assert model.T == 7 and model.training


def test_batches_of_different_sizes_count_by_their_samples(one_thread):
    torch.manual_seed(0)
    net = create_model("sew_resnet", blocks=[1], widths=[8], num_classes=7, stem="small", T=3)
    x, y = torch.rand(11, 3, 8, 8), torch.arange(11) % 7
    whole = per_step.evaluate_per_step(net, [(x, y)])
    parts = per_step.evaluate_per_step(net, zip(x.split(4), y.split(4), strict=True))
    assert parts.samples == whole.samples == 11 and net.training
    for name in ("loss", "accuracy", "accuracy5"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)
    rates = firing_rates(net, x.split(4))
    for name, by_step in whole.firing_rates.items():
        assert parts.firing_rates[name] == pytest.approx(by_step) and by_step[-1] == pytest.approx(rates[name])
    net.eval()
    for t in range(1, 4):
        net.T = t
        found = (net(x).topk(5).indices == y[:, None]).any(1).float().mean().item()
        assert whole.accuracy5[t - 1] == pytest.approx(found) and whole.accuracy[t - 1] <= found < 1
