"""Losses of a training batch, and mixing its samples."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from sewsnn.train.schema import LossConfig


class Loss(nn.Module):
    """The training loss of logits and targets.

    - ``ce``: cross entropy of the logits' mean over time (the paper's loss).
    - ``tet``, temporal efficient training, of ``logits [T, N, classes]``:
      ``(1 - lambda) mean_t CE(logits[t], y) + lambda MSE(logits, target)``.
      Source: Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022.

    Both with label smoothing. Targets are classes ``[N]`` or probabilities ``[N, classes]``.
    """

    def __init__(self, settings: LossConfig):
        super().__init__()
        self.settings = settings
        self.needs_seq = settings.name == "tet"  #: logits per time-step are wanted

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        settings = self.settings
        if not self.needs_seq:
            return cross_entropy(logits, target, label_smoothing=settings.label_smoothing)
        every_step = target.repeat(len(logits), *[1] * (target.dim() - 1))
        loss = cross_entropy(logits.flatten(0, 1), every_step, label_smoothing=settings.label_smoothing)
        if settings.tet_lambda:
            towards = mse_loss(logits, torch.full_like(logits, settings.tet_target))
            loss = (1 - settings.tet_lambda) * loss + settings.tet_lambda * towards
        return loss


def mix(x: Tensor, y: Tensor, classes: int, settings: LossConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Mixes each sample with the one before it in the batch.

    ``lam ~ Beta(a, a)``. mixup: ``lam x + (1 - lam) x'`` (Zhang et al., ICLR 2018). cutmix: a rectangle of
    ``1 - lam`` of the area comes from x' (Yun et al., ICCV 2019); lam is then what is left after clipping it.

    Args:
        x: ``[N, C, H, W]`` or ``[T, N, C, H, W]``.
        y: classes ``[N]``.
        classes: how many there are.
        settings: ``mixup``, ``cutmix``: a of each, 0: not used.
        seed: everything drawn here comes from it.

    Returns:
        Mixed samples, and probabilities ``[N, classes]`` in float32.
    """
    random = np.random.default_rng(seed)
    cut = settings.cutmix > 0 and (settings.mixup == 0 or random.random() < 0.5)
    lam = float(random.beta(*2 * (settings.cutmix if cut else settings.mixup,)))
    other = x.roll(1, x.dim() - 4)
    if cut:
        height, width = x.shape[-2:]
        half = np.sqrt(1 - lam) / 2
        row, column = random.random() * height, random.random() * width
        top, bottom = (int(np.clip(row + side * half * height, 0, height)) for side in (-1, 1))
        left, right = (int(np.clip(column + side * half * width, 0, width)) for side in (-1, 1))
        x = x.clone()
        x[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        x = torch.lerp(other, x, lam)
    target = one_hot(y, classes).float()
    return x, torch.lerp(target.roll(1, 0), target, lam)
