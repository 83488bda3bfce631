"""Mixup and CutMix follow their formulas: share, place and size, each from its own setting."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from sewsnn.train.losses import Loss, mix
from sewsnn.train.schema import LossConfig

HEIGHT, WIDTH = 40, 60


def box(random, alpha):
    """The pixels that CutMix replaces by its formula: a share 1 - lam of the area around a uniformly drawn point."""
    side = math.sqrt(1 - random.beta(alpha, alpha)) / 2
    row, column = random.random() * HEIGHT, random.random() * WIDTH
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    top, left = max(row - side * HEIGHT, 0), max(column - side * WIDTH, 0)
    inside[int(top) : int(row + side * HEIGHT), int(left) : int(column + side * WIDTH)] = True
    return inside


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_replaces_the_rectangle_of_its_formula(seed):
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, HEIGHT, WIDTH)
    mixed, target = mix(x, torch.arange(3), 3, LossConfig(cutmix=0.7), seed)
    inside = box(np.random.default_rng(seed), 0.7)
    assert 0 < inside.sum() < inside.numel()
    for i in range(3):
        assert torch.equal(mixed[i, 1] == (i - 1) % 3, inside) and torch.equal(mixed[i, 0], mixed[i, 1])
        assert target[i, (i - 1) % 3].item() == pytest.approx(inside.float().mean().item(), abs=1e-6)


def test_of_both_mixings_each_takes_half_of_the_batches_and_its_own_parameter():
    x, cuts = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, HEIGHT, WIDTH), 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        cut = random.random() < 0.5
        _, target = mix(x, torch.arange(2), 2, LossConfig(mixup=0.2, cutmix=5.0), seed)
        other = box(random, 5.0).float().mean().item() if cut else 1 - random.beta(0.2, 0.2)
        assert target[0, 1].item() == pytest.approx(other, abs=1e-6)
        cuts += cut
    assert 80 < cuts < 120


def test_tet_with_label_smoothing_and_without_its_second_term():
    """Label smoothing applies to the first term, also without the mean squared error."""
    logits, y = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 1, 2])
    smooth = sum(cross_entropy(of_t, y, label_smoothing=0.1) for of_t in logits) / 3
    found = Loss(LossConfig(name="tet", tet_lambda=0.0, label_smoothing=0.1))(logits, y)
    assert found.item() == pytest.approx(smooth.item(), rel=1e-5)
    found = Loss(LossConfig(name="tet", tet_lambda=0.25, label_smoothing=0.1))(logits, y)
    expected = 0.75 * smooth + 0.25 * ((logits - LossConfig().tet_target) ** 2).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
