"""Training steps with and without graphs, for tests that compare them."""

import torch
from torch import nn

from sewsnn.models import create_model
from sewsnn.train import build
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.schedule import set_lr
from sewsnn.train.step import Step
from sewsnn.train.sums import Sums


def net(dropout=0.0):
    torch.manual_seed(0)
    model = create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3, stem="small", T=2)
    model.fc = nn.Sequential(nn.Dropout(dropout), model.fc) if dropout else model.fc
    return model


class Run:
    """A step with fused optimizers, as on a GPU. The learning rates of eager runs are numbers that float32 holds."""

    def __init__(self, model, graphs: bool, **settings):
        settings = {"optimizer": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}} | settings
        settings["train"] = settings.get("train", {}) | {"cuda_graph": True}
        self.model, self.config = model, from_dict(settings)
        self.optimizer = build.build_optimizer(self.config, model)
        self.config.train.cuda_graph = graphs
        self.stepper = Step(self.config, model, self.optimizer, Processes("cpu"), 3)
        self.sums = Sums(torch.device("cpu"))
        self.found = []

    def epoch(self, batches, epoch=0, start=0):
        torch.manual_seed(epoch)
        every = self.config.train.accumulate
        for step, (x, y) in enumerate(batches, start):
            self.step(x, y, step, epoch, every, step % every == every - 1)

    def step(self, x, y, step=0, epoch=0, group=1, last=True):
        set_lr(self.optimizer, 1 / (1 + step + 10 * epoch))
        if self.stepper.graphed is None:
            for settings in self.optimizer.param_groups:
                settings["lr"] = torch.tensor(settings["initial_lr"] / (1 + step + 10 * epoch)).item()
        x, y = x.clone(), y.clone()
        self.stepper.run(x, y, epoch, step, group, last, self.sums)
        x.fill_(float("nan"))  # the next step must not depend on this memory
        y.fill_(-1)
        self.found.append(self.sums._sums.clone())

    def tensors(self):
        """All tensors of the run, with the sums after each step."""
        average, scaler = self.stepper.average, self.stepper.scaler
        states = [t for state in self.optimizer.state.values() for t in state.values()]
        parts = [*self.model.state_dict().values(), *states, scaler._scale, scaler._growth_tracker, *self.found]
        return parts + (list(average.state_dict().values()) if average else [])


def batches(count=8, size=4, shape=(3, 8, 8)):
    generator = torch.Generator().manual_seed(count)
    return [(torch.rand(size, *shape, generator=generator), torch.arange(size) % 3) for _ in range(count)]


def assert_same(a, b):
    for i, (x, y) in enumerate(zip(a.tensors(), b.tensors(), strict=True)):
        assert torch.equal(x, y), i
