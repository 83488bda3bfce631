"""The parts of a training step: random numbers, clipping, averages and counts."""

import math

import pytest
import torch
from linear_step import Linear, stepper
from torch import nn
from torch.nn.functional import cross_entropy

from sewsnn.data import random_temporal_delete
from sewsnn.data.source import seed_of
from sewsnn.models import create_model
from sewsnn.train.average import Average
from sewsnn.train.distributed import Processes
from sewsnn.train.sums import Sums

CPU = torch.device("cpu")


def run(step, x, y, epoch=0, index=0, group=1, last=True):
    sums = Sums(CPU)
    step.run(x, y, epoch, index, group, last, sums)
    return sums


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_the_gradient_that_is_clipped_is_that_of_the_loss(amp):
    """In fp16 clipping uses unscaled gradients: the scaled ones are 65536 times as large."""
    model = Linear()
    before = [p.detach().clone() for p in model.parameters()]
    run(stepper(model, optimizer={"clip_norm": 0.01}, train={"amp": amp}), torch.ones(2, 6), torch.tensor([0, 1]))
    change = math.sqrt(sum(((a - b.detach()) ** 2).sum() for a, b in zip(before, model.parameters(), strict=True)))
    assert change == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_the_moving_average_has_the_counters_and_statistics_of_the_last_step():
    model = create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3, stem="small", T=2)
    average = Average(model, 0.9)
    first = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    for i in range(1, 4):
        model(torch.rand(4, 3, 8, 8))
        average.update(model)
        ours = dict(average.module.named_buffers())
        counters = {name: value for name, value in model.named_buffers() if not value.is_floating_point()}
        assert counters and all(ours[name] == value == i for name, value in counters.items())
    assert all(not torch.equal(ours[name], value) for name, value in first.items())


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixing_differs_by_epoch_step_seed_and_process(mixing):
    x, y = torch.rand(3, 1, 16, 16), torch.tensor([0, 1, 2])

    def mixed(epoch, index, seed=0, rank=0):
        model = Linear()
        model.fc = nn.Linear(256, 3)
        step = stepper(model, seed=seed, loss={mixing: 1.0})
        step.processes.rank = rank
        run(step, x, y, epoch, index)
        return model.seen

    draws = [mixed(0, 0), mixed(1, 0), mixed(0, 1), mixed(0, 0, seed=1), mixed(0, 0, rank=1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert torch.equal(mixed(1, 0), draws[1]) and not any(torch.equal(draw, x) for draw in draws)


def test_time_steps_are_deleted_by_seed_epoch_and_step():
    """The time-steps are the same on all processes, because one network sees them."""
    x, y = torch.arange(20.0).view(20, 1, 1, 1, 1).expand(20, 2, 1, 1, 6).contiguous(), torch.tensor([0, 1])

    def kept(epoch, index, seed=0, rank=0):
        model = Linear()
        step = stepper(model, seed=seed, data={"T_train": 10})
        step.processes.rank = rank
        run(step, x, y, epoch, index)
        return model.seen[:, 0, 0, 0, 0].tolist()

    draws = [kept(0, 0), kept(1, 0), kept(0, 1), kept(0, 0, seed=1)]
    assert len(set(map(tuple, draws))) == 4 and all(len(draw) == 10 for draw in draws)
    assert kept(1, 0) == kept(1, 0, rank=1) == draws[1]
    generator = torch.Generator().manual_seed(seed_of(0, -1, 1, 0))
    assert draws[1] == random_temporal_delete(x, 10, generator=generator)[:, 0, 0, 0, 0].tolist()


def test_tet_is_of_each_time_step_and_counts_with_the_mean():
    """Two of three time-steps are right, but their mean is not: with TET, loss and accuracy use different logits."""

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.seq = nn.Parameter(torch.tensor([[[1.0, 0, 0]], [[1, 0, 0]], [[0, 9, 0]]]))

        def forward(self, x, return_seq=False):
            return self.seq * 1.0 if return_seq else self.seq.mean(0)

    model, y = Given(), torch.tensor([0])
    expected = sum(cross_entropy(of_t, y) for of_t in model.seq.detach()) / 3
    sums = run(stepper(model, loss={"name": "tet", "tet_lambda": 0.0}), torch.zeros(1, 1), y)
    values = sums.values(Processes("cpu"))
    assert values["loss"] == pytest.approx(expected.item(), rel=1e-6) and (values["top1"], values["top5"]) == (0, 1)


def test_gradients_lie_still_only_where_a_cuda_graph_adds_to_them():
    """Unused parameters get no gradient: zeros would cost memory, and momentum and decay would change them."""
    for train, keeps in [
        ({"accumulate": 2}, False),
        ({"compile": "default", "accumulate": 2}, False),
        ({"compile": "reduce-overhead"}, False),
        ({"compile": "max-autotune", "accumulate": 2}, True),
    ]:
        model = Linear()
        step = stepper(model, train=train)
        assert all((p.grad is not None) == keeps for p in model.parameters()), train
        step._network = model  # not compiled
        run(step, torch.ones(2, 6), torch.tensor([0, 1]), last=True)
        assert all((p.grad is not None) == keeps for p in model.parameters()), train


def test_sums_begin_at_nothing_or_where_a_resume_left_them():
    processes, zeros = Processes("cpu"), dict.fromkeys(["samples", "loss", "top1", "top5", "seconds", "waited"], 0)
    sums = Sums(CPU)
    assert sums.values(processes) == zeros and sums.steps == 0 and sums.first_bad() > 10**18
    left = {"samples": 7, "loss": 2.5, "top1": 3, "top5": 6, "seconds": 1.25, "waited": 0.5}
    sums = Sums(CPU, left)
    assert sums.values(processes) == left
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]])
    sums.add(torch.tensor(2.0), logits, torch.tensor([0, 4, 5]), 8)
    assert sums.values(processes) == left | {"samples": 10, "loss": 8.5, "top1": 4, "top5": 8}
    for step in (11, 9, 12):  # a batch with a loss that is not finite
        sums.add(torch.tensor(math.inf), logits, torch.tensor([0, 4, 5]), step)
    assert sums.first_bad() == 9
