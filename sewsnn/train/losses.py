"""The training losses, and mixup and cutmix."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from sewsnn.train.schema import LossConfig


class Loss(nn.Module):
    """The training loss of logits and targets, with label smoothing.

    - ``ce``: cross entropy of the logits' mean over time, the loss of the SEW ResNet paper.
    - ``tet``, temporal efficient training: ``(1 - lambda) mean_t CE(logits[t], y) + lambda MSE(logits, target)`` with
      ``lambda = tet_lambda`` and ``target = tet_target``.

    Args:
        settings: see :class:`~sewsnn.train.schema.LossConfig`.

    Attributes:
        needs_seq: whether ``forward`` expects the logits of each time-step (``tet``).

    Source: Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022.
    """

    def __init__(self, settings: LossConfig):
        super().__init__()
        self.settings = settings
        self.needs_seq = settings.name == "tet"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: ``[N, classes]`` (mean over time) for ``ce``, ``[T, N, classes]`` for ``tet``.
            target: class indices ``[N]``, or probabilities ``[N, classes]``.

        Returns:
            A scalar tensor: the mean over the samples.
        """
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
    """Mixes each sample of a batch with the sample before it, by mixup or cutmix.

    With ``lam ~ Beta(a, a)`` and the other sample x': mixup gives ``lam x + (1 - lam) x'``. cutmix replaces a rectangle
    of a fraction ``1 - lam`` of the area by that of x'; the rectangle is clipped at the border, and lam becomes the
    remaining fraction.

    Args:
        x: ``[N, C, H, W]`` or ``[T, N, C, H, W]``.
        y: class indices ``[N]``.
        classes: number of classes.
        settings: ``mixup`` and ``cutmix`` hold the a of each; 0: not used. If both are set, each batch uses one of them
            with equal probability.
        seed: the source of all random numbers.

    Returns:
        The mixed samples, and probabilities ``[N, classes]`` in float32.

    Source: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
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
