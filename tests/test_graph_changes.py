"""What is replaced or set to another value after a capture is noticed before the next replay."""

import copy
import re
import warnings

import pytest
import torch
from graph_run import Run, assert_same, batches, net
from linear_step import Linear
from torch import nn

from sewsnn.train import graph

pytestmark = pytest.mark.usefixtures("one_thread")


def new_weight(run):
    old = run.model.fc[1].weight
    run.model.fc[1].weight = nn.Parameter(old.detach() * 2)
    group = run.optimizer.param_groups[0]["params"]
    group[[p is old for p in group].index(True)] = run.model.fc[1].weight
    run.optimizer.state[run.model.fc[1].weight] = run.optimizer.state.pop(old)


def new_memory(run):
    run.model.fc[1].weight.data = run.model.fc[1].weight.data * 2


def new_buffer(run):
    run.model.layer1[0].bn1.running_mean = torch.ones(4)


def new_layer(run):
    run.model.fc[0] = nn.Identity()


def new_states(run):
    rates = [group["lr"] for group in run.optimizer.param_groups]
    content = copy.deepcopy(run.optimizer.state_dict())
    content["state"][0]["momentum_buffer"] *= 3
    run.optimizer.load_state_dict(content)
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def frozen(run):
    run.model.fc[1].weight.requires_grad_(False)


def in_eval_mode(run):
    run.model.layer1[0].bn1.eval()


def other_threshold(run):
    run.model.layer1[0].sn1.v_threshold = 0.7


def other_decay(run):
    run.optimizer.param_groups[0]["weight_decay"] = 0.5


def other_growth(run):
    run.stepper.scaler.set_growth_interval(2)


def a_gradient_left(run):
    run.model.fc[1].bias.grad = torch.ones(3)


@pytest.mark.parametrize(
    "change, words",
    [
        (new_weight, r"model\.fc\.1\.weight"),
        (new_memory, r"model\.fc\.1\.weight"),
        (new_buffer, r"model\.layer1\.0\.bn1\.running_mean"),
        (new_layer, r"model\.fc\.0"),
        (new_states, "the optimizer's momentum_buffer"),
        (frozen, "requires_grad of a parameter"),
        (in_eval_mode, r"a setting of model\.layer1\.0\.bn1"),
        (other_threshold, r"a setting of model\.layer1\.0\.sn1"),
        (other_decay, "a setting of the optimizer or of the loss scale"),
        (other_growth, "a setting of the optimizer or of the loss scale"),
        (a_gradient_left, "a gradient"),
    ],
)
def test_what_a_replay_would_miss_leads_to_a_new_capture(change, words, tape):
    runs = [Run(net(dropout=0.3), graphs) for graphs in (False, True)]
    for run in runs:
        run.epoch(batches(6))
        change(run)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.epoch(batches(6), 1)
        told = [str(w.message) for w in caught if "train.cuda_graph" in str(w.message)]
        assert len(told) == (1 if run is runs[1] else 0), told
    assert_same(*runs)
    assert re.search(rf"train\.cuda_graph: {words} has changed, .* captured again", told[0])
    assert len(tape.tapes) == 2 and tape.waits == 1


@pytest.mark.filterwarnings("error")
def test_values_in_the_same_memory_may_change(tape):
    """A replay reads what is loaded into the network and the loss scale, and evaluation in between changes nothing."""
    saved = net(dropout=0.3).state_dict()
    runs = [Run(net(dropout=0.3), graphs, train={"amp": "fp16", "ema": 0.5}) for graphs in (False, True)]
    for run in runs:
        run.epoch(batches(8))
        run.model.load_state_dict(saved)
        run.stepper.scaler.load_state_dict({**run.stepper.scaler.state_dict(), "scale": 512.0})
        run.model.eval()
        with torch.no_grad():
            run.found.append(run.model(batches(1)[0][0]))
        run.model.train()
        run.epoch(batches(8), 1)
    assert_same(*runs)
    assert len(tape.tapes) == 1


def test_a_learning_rate_that_is_no_tensor_any_more_is_an_error(tape):
    def number(run):
        run.optimizer.param_groups[0]["lr"] = 0.1

    def loaded(run):
        run.optimizer.load_state_dict(run.optimizer.state_dict())

    for change in (number, loaded):
        run = Run(Linear(), True)
        run.epoch(batches(6, 4, (6,)))
        change(run)
        with pytest.raises(RuntimeError, match=r"learning rate of parameter group 0 must stay the tensor .*set_lr"):
            run.epoch(batches(1, 4, (6,)))


def test_tensors_that_are_replaced_at_every_step_are_an_error(tape, monkeypatch):
    monkeypatch.setattr(graph, "_MOST_CAPTURES", 3)
    run = Run(Linear(), True)
    with pytest.warns(UserWarning, match="captured again"), pytest.raises(RuntimeError, match="captured 3 times"):
        for _ in range(20):
            run.epoch(batches(4, 4, (6,)))
            run.model.fc.weight.data = run.model.fc.weight.data.clone()
