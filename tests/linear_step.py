"""A training step of a linear network, for tests of the step's parts."""

import torch
from torch import nn

from sewsnn.train import build
from sewsnn.train.config import from_dict
from sewsnn.train.distributed import Processes
from sewsnn.train.step import Step


class Linear(nn.Module):
    """Records its inputs. Without batch norm its result does not depend on how a batch is divided."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x, return_seq=False):
        self.seen = x
        seq = self.fc(x.reshape(*x.shape[: x.dim() - 4 + 1], -1) if x.dim() > 3 else x)
        return seq if return_seq or seq.dim() == 2 else seq.mean(0)


def stepper(model, **settings):
    """A step with SGD without momentum; ``settings`` are sections of a configuration."""
    config = from_dict({"optimizer": {"lr": 0.5, "momentum": 0.0, **settings.pop("optimizer", {})}, **settings})
    return Step(config, model, build.build_optimizer(config, model), Processes("cpu"), 3)
