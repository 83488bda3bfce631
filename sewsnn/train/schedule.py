"""The learning rate as a function of the place in the run: nothing to store, nothing to lose."""

import math

from torch.optim import Optimizer

from sewsnn.train.schema import ScheduleConfig


def factor(settings: ScheduleConfig, epochs: int, position: float) -> float:
    """What the base learning rate is multiplied with.

    Args:
        settings: ``every="epoch"``: ``position`` is rounded down first, as in the paper's runs.
        epochs: of the whole run, E.
        position: epochs done so far, p (2.5: in the middle of the third).

    Returns:
        While ``p < W`` (``warmup_epochs``): ``warmup_start + (1 - warmup_start) p / W``; then

        - ``cosine``: ``final + (1 - final) (1 + cos(pi (p - W) / (E - W))) / 2`` (Table S1: W = 0, final = 0),
        - ``step``: ``gamma ** floor(p / step_size)``, - ``constant``: 1.
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
    """Sets the base learning rate times ``value`` in every group.

    Returns:
        That of the first group.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * value
    return optimizer.param_groups[0]["lr"]
