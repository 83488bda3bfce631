"""The learning rate schedule: a function of the position in the run, so checkpoints need not store it."""

import math

from torch import Tensor
from torch.optim import Optimizer

from sewsnn.train.schema import ScheduleConfig


def factor(settings: ScheduleConfig, epochs: int, position: float) -> float:
    """Returns the factor that multiplies the base learning rate.

    While ``p < W``, the factor is ``warmup_start + (1 - warmup_start) p / W``. After that it is

    - ``cosine``: ``final + (1 - final) (1 + cos(pi (p - W) / (E - W))) / 2``,
    - ``step``: ``gamma ** floor(p / step_size)``,
    - ``constant``: 1.

    Args:
        settings: see :class:`~sewsnn.train.schema.ScheduleConfig`; W is ``warmup_epochs``. With ``every="epoch"``,
            ``position`` is first rounded down, as in the runs of the SEW ResNet paper.
        epochs: E, the number of epochs of the whole run.
        position: p, the number of epochs done so far; 2.5 is the middle of the third epoch.

    Source: Table S1 of the SEW ResNet paper for ``cosine`` (W = 0, final = 0).
    """
    if settings.every == "epoch":
        position = math.floor(position)
    warmup = settings.warmup_epochs
    if position < warmup:
        return settings.warmup_start + (1 - settings.warmup_start) * position / warmup
    if settings.name == "cosine":
        angle = math.pi * (position - warmup) / (epochs - warmup)
        return settings.final + (1 - settings.final) * (1 + math.cos(angle)) / 2
    return settings.gamma ** (position // settings.step_size) if settings.name == "step" else 1.0


def set_lr(optimizer: Optimizer, value: float) -> float:
    """Sets the learning rate of every parameter group to its base learning rate times ``value``. A tensor stays the
    same tensor, because CUDA graphs read it.

    Returns:
        The learning rate of the first group.
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["initial_lr"] * value)
        else:
            group["lr"] = group["initial_lr"] * value
    return optimizer.param_groups[0]["initial_lr"] * value
