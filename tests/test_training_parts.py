"""The parts of the training loop: learning rate, losses, mixing, accumulation, moving average, non-finite values."""

import math

import numpy as np
import pytest
import torch
from linear_step import Linear, stepper
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sewsnn.errors import UserError
from sewsnn.models import create_model
from sewsnn.train import build
from sewsnn.train.average import Average
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.losses import Loss, mix
from sewsnn.train.nonfinite import NonFinite, find
from sewsnn.train.prefetch import Prefetch, to_channels_last
from sewsnn.train.schedule import factor, set_lr
from sewsnn.train.schema import LossConfig, ScheduleConfig
from sewsnn.train.sums import Sums


@pytest.mark.parametrize("name", ["cosine", "step", "constant"])
def test_schedules_are_torchs(name):
    """By epoch and without warm-up, the learning rates equal those of torch's schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    schedulers = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.3),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }
    scheduler = schedulers[name]()
    settings = ScheduleConfig(name=name, step_size=7, gamma=0.3)
    for epoch in range(20):
        expected = optimizer.param_groups[0]["lr"]
        for step in (0, 0.4, 0.99):
            assert 0.1 * factor(settings, 20, epoch + step) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warm_up_and_steps():
    """A line from warmup_start to 1, then the whole cosine down to `final`, at every step."""
    settings = ScheduleConfig(every="step", warmup_epochs=5, warmup_start=0.1, final=0.01)
    assert factor(settings, 25, 0) == pytest.approx(0.1)
    assert factor(settings, 25, 2.5) == pytest.approx(0.55)
    assert factor(settings, 25, 5) == 1.0
    assert factor(settings, 25, 15) == pytest.approx(0.505)
    assert factor(settings, 25, 25) == pytest.approx(0.01)
    by_epoch = ScheduleConfig(warmup_epochs=5, warmup_start=0.1)
    assert factor(by_epoch, 25, 2.9) == factor(by_epoch, 25, 2) == pytest.approx(0.1 + 0.9 * 2 / 5)


def test_groups_keep_their_ratio():
    config = from_dict({"optimizer": {"lr": 0.4, "decay_norms": False, "weight_decay": 0.1}})
    model = create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3, stem="small")
    optimizer = build.build_optimizer(config, model)
    assert set_lr(optimizer, 0.5) == 0.2
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in plain["params"]} == {1} and {p.dim() for p in decayed["params"]} == {2, 4}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_losses():
    """Compares the losses with their formulas."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 3, 1, 1, 2])
    assert Loss(LossConfig())(logits[0], y) == cross_entropy(logits[0], y)
    log_p = logits[0].log_softmax(1)
    smooth = -(0.9 * log_p[range(5), y] + 0.1 * log_p.mean(1)).mean()
    assert Loss(LossConfig(label_smoothing=0.1))(logits[0], y) == pytest.approx(smooth.item(), rel=1e-12)
    tet = Loss(LossConfig(name="tet", tet_lambda=0.2, tet_target=1.5))
    expected = 0.8 * sum(cross_entropy(of_t, y) for of_t in logits) / 3 + 0.2 * ((logits - 1.5) ** 2).mean()
    assert tet.needs_seq and tet(logits, y).item() == pytest.approx(expected.item(), rel=1e-12)
    assert tet(logits, one_hot(y, 4).double()).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 3, 8, 10), (2, 6, 3, 8, 10)])
def test_mixup(shape):
    """Mixup mixes each sample and target with the one before it in the same proportion; only the seed decides."""
    x, y = torch.rand(shape), torch.tensor([0, 1, 2, 3, 0, 1])
    samples = x.movedim(len(shape) - 4, 0)
    mixed, target = mix(x, y, 4, LossConfig(mixup=0.4), seed=5)
    again, _ = mix(x, y, 4, LossConfig(mixup=0.4), seed=5)
    assert torch.equal(mixed, again) and mixed.shape == x.shape and target.shape == (6, 4)
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    lam = np.random.default_rng(5).beta(0.4, 0.4)
    for i, sample in enumerate(mixed.movedim(len(shape) - 4, 0)):
        torch.testing.assert_close(sample, lam * samples[i] + (1 - lam) * samples[i - 1])
        expected = lam * one_hot(y[i], 4) + (1 - lam) * one_hot(y[i - 1], 4)
        torch.testing.assert_close(target[i], expected.float())


@pytest.mark.parametrize("shape", [(4, 3, 8, 10), (2, 4, 3, 8, 10)])
def test_cutmix(shape):
    """CutMix inserts a rectangle of the sample before; the target's share equals that of the pixels."""
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(shape).contiguous()
    y = torch.arange(4)
    cut = 0
    for seed in range(20):
        mixed, target = mix(x, y, 4, LossConfig(cutmix=1.0), seed)
        for i, sample in enumerate(mixed.movedim(len(shape) - 4, 0)):
            share = (sample == i).float().mean().item()
            assert ((sample == i) | (sample == (i - 1) % 4)).all()
            assert target[i, i].item() == pytest.approx(share, abs=1e-6)
            assert target[i, (i - 1) % 4].item() == pytest.approx(1 - share, abs=1e-6)
            rows, columns = (sample[0] != i).nonzero().T[-2:] if len(shape) == 4 else (sample[0, 0] != i).nonzero().T
            if len(rows):  # a full rectangle
                assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
                cut += 1
    assert cut > 20 and torch.equal(x, torch.arange(4.0).view(4, 1, 1, 1).expand(shape))


def test_one_of_both_mixings():
    kinds = set()
    x, y = torch.rand(4, 1, 6, 6), torch.arange(4)
    for seed in range(20):
        mixed, _ = mix(x, y, 4, LossConfig(mixup=1.0, cutmix=1.0), seed)
        kinds.add(bool(((mixed == x) | (mixed == x.roll(1, 0))).all()))
    assert kinds == {True, False}


def test_accumulated_batches_are_one():
    x, y = torch.randn(12, 6), torch.randint(0, 3, (12,))
    whole, cut = Linear(), Linear()
    one, parts = stepper(whole), stepper(cut)
    one.run(x, y, 0, 0, 1, True, Sums(torch.device("cpu")))
    sums = Sums(torch.device("cpu"))
    for i in range(3):
        parts.run(x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4], 0, i, 3, i == 2, sums)
    torch.testing.assert_close(whole.fc.weight, cut.fc.weight, rtol=1e-5, atol=1e-6)
    assert not torch.equal(whole.fc.weight, Linear().fc.weight)
    values = sums.values(Processes("cpu"))
    logits = Linear()(x)
    assert values["samples"] == 12 and values["loss"] == pytest.approx(12 * cross_entropy(logits, y).item(), rel=1e-5)
    assert values["top1"] == int((logits.argmax(1) == y).sum()) and values["top5"] == 12


def test_accumulated_gradients_of_cuda_graphs():
    """A replay overwrites the last replay's gradients, so the sum must be in other memory from the first batch on."""
    model = Linear()
    step = stepper(model, train={"compile": "reduce-overhead", "accumulate": 2})
    step._network = model  # without CUDA graphs, which need a GPU
    place, x, y = model.fc.weight.grad.data_ptr(), torch.randn(8, 6), torch.randint(0, 3, (8,))
    for i in range(4):
        step.run(x, y, 0, i, 2, i % 2 == 1, Sums(torch.device("cpu")))
        assert model.fc.weight.grad.data_ptr() == place
    assert not model.fc.weight.grad.any() and not torch.equal(model.fc.weight, Linear().fc.weight)


def test_moving_average():
    """e <- d e + (1 - d) w after each optimizer step; e starts as the first w."""
    model = Linear()
    step, expected = stepper(model, train={"ema": 0.75}), None
    for i in range(4):
        x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
        step.run(x, y, 0, i, 1, True, Sums(torch.device("cpu")))
        weight = model.fc.weight.detach().clone()
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(step.average.module.fc.weight, expected)


def test_moving_average_is_torchs():
    """The average includes batch-norm statistics, and files have the same names. The part that processes share is on
    the model's device, because NCCL refuses a counter on the host."""
    model = net()
    ours = Average(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        model(batch()[0])
        ours.update(model)
        theirs.update_parameters(model)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys() and state["n_averaged"] == 3
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(state[name], value, msg=lambda m, n=name: f"{n}: {m}")
    shared = [buffer.data_ptr() for buffer in ours.module.buffers()]
    assert ours.n_averaged.data_ptr() not in shared and len(shared) == len(list(model.buffers()))


def net():
    torch.manual_seed(0)
    return create_model("sew_resnet", blocks=[1, 1], widths=[4, 8], num_classes=3, stem="small", T=2)


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda m: m.layer2[0].conv1.weight.data[0].fill_(math.nan), "parameter or statistic layer2.0.conv1.weight"),
        (lambda m: m.layer1[0].conv2.weight.data.fill_(1e38), r"output of layer1\.0\.(conv2|bn2)"),
        (lambda m: m.fc.weight.data.fill_(3e38), "output of fc"),
    ],
)
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_what_is_not_finite_is_found(damage, words, amp):
    """The error names step and layer, and the weights stay unchanged."""
    model = net()
    step = stepper(model, train={"amp": amp})
    sums = Sums(torch.device("cpu"))
    step.run(*batch(), 0, 0, 1, True, sums)
    step.check(sums, 0, lambda _: batch())
    damage(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(NonFinite, match=rf"epoch 1, step 7: (the loss|a batch statistic) is not finite; .*{words}"):
        step.run(*batch(), 0, 6, 1, True, sums)
        step.check(sums, 0, lambda _: batch())
    for name, p in model.named_parameters():
        assert torch.equal(p.isnan(), before[name].isnan()) and torch.equal(p.nan_to_num(), before[name].nan_to_num())


def test_a_batch_that_is_not_finite():
    x, y = torch.full((2, 6), math.inf), torch.tensor([0, 1])
    step, sums = stepper(Linear()), Sums(torch.device("cpu"))
    step.run(torch.ones(2, 6), y, 2, 4, 1, True, sums)
    step.run(x, y, 2, 5, 1, True, sums)
    step.run(torch.ones(2, 6), y, 2, 6, 1, True, sums)  # found at a later step, but reported with its own step
    with pytest.raises(
        NonFinite, match="epoch 3, step 6: the loss is not finite; the first such value is in the batch itself"
    ):
        step.check(sums, 2, lambda i: (x, y) if i == 5 else None)


def test_a_gradient_that_is_not_finite():
    class Root(nn.Module):
        """sqrt is finite at 0, but its gradient is not."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(3))

        def forward(self, x, return_seq=False):
            return x * self.scale.abs().sqrt()

    model = Root()
    step, sums = stepper(model), Sums(torch.device("cpu"))
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    step.run(x, y, 0, 0, 1, True, sums)
    with pytest.raises(
        NonFinite, match="step 1: a gradient is not finite; the first such value is in the gradient of scale"
    ):
        step.check(sums, 0, lambda _: (x, y))
    assert torch.equal(model.scale.detach(), torch.zeros(3))


@pytest.mark.parametrize("words", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_too_little_memory_is_said(words):
    def forward(x):
        if words.startswith("CUDA"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return torch.empty(2**60)

    model = Linear()
    model.forward = forward
    with pytest.raises(UserError, match=rf"epoch 1, step 4: out of memory on cpu \({words}.*batch_size"):
        stepper(model).run(torch.ones(2, 6), torch.tensor([0, 1]), 0, 3, 1, True, Sums(torch.device("cpu")))


def test_fp16_skips_infinite_gradients_and_ends_if_they_stay():
    model = Linear()
    step, sums = stepper(model, train={"amp": "fp16"}), Sums(torch.device("cpu"))
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**30})  # overflows float16's gradients
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    before = model.fc.weight.detach().clone()
    step.run(x, y, 0, 0, 1, True, sums)
    step.check(sums, 0, lambda _: None)
    assert torch.equal(model.fc.weight.detach(), before) and step.scaler.get_scale() == 2.0**29
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**-30})
    with pytest.raises(NonFinite, match="gradients in fp16 are infinite"):
        step.check(sums, 0, lambda _: None)


def test_nothing_is_found_in_a_sound_batch():
    model = net()
    assert find(model, *batch(), lambda x, y: cross_entropy(model(x), y)) is None


def test_batches_reach_the_device_in_order():
    batches = [(torch.full((2, 3, 4, 4), i, dtype=torch.uint8), torch.tensor([i, i])) for i in range(5)]
    prefetch = Prefetch(batches, torch.device("cpu"), torch.Tensor.float, channels_last=True)
    seen = list(prefetch)
    assert [int(y[0]) for _, y in seen] == list(range(5)) and prefetch.waited >= 0
    assert all(x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last) for x, _ in seen)
    sequence = torch.rand(3, 2, 4, 5, 6)
    frames = to_channels_last(sequence)
    assert torch.equal(frames, sequence) and frames[1].is_contiguous(memory_format=torch.channels_last)
