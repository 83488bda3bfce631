"""Training steps that are captured and replayed: they equal eager steps, and what cannot be captured is an error.

A tape of operations stands for the CUDA graph; see graph_tape.py.
"""

import copy

import pytest
import torch
from graph_run import Run, assert_same, batches, net
from linear_step import Linear

from sewsnn.errors import UserError
from sewsnn.train import graph
from sewsnn.train.distributed import Processes
from sewsnn.train.nonfinite import NonFinite
from sewsnn.train.sums import Sums

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": {"amp": "bf16", "ema": 0.9}},
        {"train": {"amp": "fp16"}, "optimizer": {"lr": 0.1, "clip_norm": 0.5}},
        {"train": {"accumulate": 2, "ema": 0.5}, "optimizer": {"lr": 0.1, "nesterov": True}},
        {"optimizer": {"name": "adamw", "lr": 0.01, "decay_norms": False, "weight_decay": 0.1}},
        {"loss": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}},
        {"loss": {"name": "tet"}},
    ],
    ids=["sgd", "bf16 ema", "fp16 clipped", "accumulated", "adamw", "mixed", "tet"],
)
def test_replays_equal_eager_steps_bit_for_bit(settings, tape):
    """Weights, momentum, average, loss scale and sums after every step; learning rates change, dropout draws."""
    runs = [Run(net(dropout=0.3), graphs, **copy.deepcopy(settings)) for graphs in (False, True)]
    for run in runs:
        for epoch in range(2):
            run.epoch(batches(), epoch)
            run.sums = Sums(torch.device("cpu"))
    assert_same(*runs)
    graphed = runs[1].stepper.graphed
    forms = 2 * runs[1].config.train.accumulate - 1  # the first update of the average is one of its own
    assert len(tape.tapes) == graphed.captures >= 1 and graphed.replays >= 16 - graph.WARM_UP * forms - 1


def test_shapes_have_their_own_graphs(tape):
    """Random temporal delete shortens all batches; the last batch of an epoch is smaller."""
    runs = [Run(Linear(), graphs, data={"T_train": 3}) for graphs in (False, True)]
    for run in runs:
        for epoch in range(6):
            run.epoch([*sequences(3), (sequences(1)[0][0][:, :1], torch.tensor([2]))], epoch)
    assert_same(*runs)
    assert len(tape.tapes) == 2 and tape.warm_ups == 2 * graph.WARM_UP
    assert runs[1].stepper.graphed.replays == 6 * 4 - 2 * graph.WARM_UP
    assert runs[1].model.seen.shape == (3, 1, 6, 1, 1)


def sequences(count):
    generator = torch.Generator().manual_seed(count)
    return [(torch.rand(5, 4, 6, 1, 1, generator=generator), torch.arange(4) % 3) for _ in range(count)]


def test_there_are_only_so_many_graphs(tape):
    """Further shapes, types and memory formats run eagerly and are right."""
    runs = [Run(Linear(), graphs) for graphs in (False, True)]
    given = [batches(1, size, (6,))[0] for size in range(1, 12)]
    for run in runs:
        for epoch in range(5):
            run.epoch(given, epoch)
    assert_same(*runs)
    assert len(tape.tapes) == graph.MOST_GRAPHS
    assert runs[1].stepper.graphed.replays == graph.MOST_GRAPHS * (5 - graph.WARM_UP)


def test_type_and_memory_format_are_part_of_the_form(tape):
    x, y = batches(1)[0]
    last = x.contiguous(memory_format=torch.channels_last)
    graphed = Run(net(), True).stepper.graphed
    forms = [graphed._form((given, y, y), (1, True, False)) for given in (x, x.double(), last, x.clone())]
    assert forms[0] is forms[3] and len({id(form) for form in forms}) == 3
    assert [form.inputs[0].dtype for form in forms[:2]] == [torch.float32, torch.float64]
    assert [form.inputs[0].stride() for form in forms[:3]] == [x.stride(), x.stride(), last.stride()]


def test_an_infinite_gradient_skips_the_replayed_step(tape):
    """The loss scale falls and grows in the replays, and the momentum of a skipped first step is zero."""
    runs = [Run(Linear(), graphs, train={"amp": "fp16"}) for graphs in (False, True)]
    for run in runs:
        run.stepper.scaler.load_state_dict({**run.stepper.scaler.state_dict(), "scale": 2.0**20, "growth_interval": 3})
        for step in range(12):
            run.step(torch.full((4, 6), 3.0e4 if step in (0, 6) else 1.0), torch.tensor([0, 1, 2, 0]), step)
    assert_same(*runs)
    scale = runs[1].stepper.scaler.get_scale()
    assert runs[1].stepper.graphed.replays == 9 and scale < 2.0**24
    assert all(p.isfinite().all() for p in runs[1].model.parameters())


def test_a_loss_that_is_not_finite_is_reported_with_its_step(tape):
    run = Run(Linear(), True)
    x, y = torch.ones(2, 6), torch.tensor([0, 1])
    for step in range(8):
        run.step(x, y, step)
    before = run.model.fc.weight.detach().clone()
    run.step(x * float("inf"), y, 8)
    run.step(x, y, 9)
    assert run.stepper.graphed.replays == 7
    with pytest.raises(
        NonFinite, match="epoch 1, step 9: the loss is not finite; the first such value is in the batch"
    ):
        run.stepper.check(run.sums, 0, lambda i: (x * float("inf"), y) if i == 8 else None)
    assert not before.isnan().any() and run.model.fc.weight.isfinite().all()


def test_new_sums_begin_with_their_own_values(tape):
    """Neither a loss of the last epoch that was not finite nor its sums stay in the memory of the graphs."""
    run = Run(Linear(), True)
    x, y = torch.ones(2, 6), torch.tensor([0, 1])
    for step in range(6):
        run.step(x * (float("inf") if step == 5 else 1), y, step)
    assert run.sums.first_bad() == 5
    run.sums = Sums(torch.device("cpu"), run.sums.values(Processes("cpu")) | {"samples": 100, "loss": 0.0})
    run.step(x, y, 0)
    values = run.sums.values(Processes("cpu"))
    assert run.sums.first_bad() > 10**18 and values["samples"] == 102 and 0 < values["loss"] < 100


class Reads(Linear):
    def forward(self, x, return_seq=False):
        return super().forward(x, return_seq) * (1.0 if x.sum().item() > 0 else 2.0)


class Replaces(Linear):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, return_seq=False):
        self.count = self.count + 1
        return super().forward(x, return_seq)


@pytest.mark.parametrize(
    "model, words",
    [
        (Reads, r"cannot be captured \(.*local_scalar.*not permitted.*\.item\(\).*set train.cuda_graph: false"),
        (Replaces, r"replaces model\.count, which a replay cannot repeat; set train.cuda_graph: false"),
    ],
)
def test_what_cannot_be_captured_is_an_error(model, words, tape):
    run = Run(model(), True)
    with pytest.raises(UserError, match=r"train\.cuda_graph: the training step .*" + words):
        run.epoch(batches(8, 4, (6,)))
    assert len(run.found) == graph.WARM_UP


def too_little_memory(work):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_too_little_memory_in_a_capture_is_said(tape, monkeypatch):
    monkeypatch.setattr(tape, "capture", too_little_memory)
    with pytest.raises(UserError, match=r"epoch 1, step 4: out of memory on cpu .CUDA out of memory.*batch_size"):
        Run(Linear(), True).epoch(batches(8, 4, (6,)))
