"""Data sets: CIFAR-10's files, generated data, augmentation."""

import numpy as np
import pytest
import torch

from sewsnn.data import create_data, list_data, random_temporal_delete
from sewsnn.data.cifar10 import MEAN, RECORD, STD, TEST, TRAIN
from sewsnn.data.generated import SHAPES
from sewsnn.data.images import shifted
from sewsnn.errors import DataError


@pytest.fixture
def cifar_folder(tmp_path):
    """CIFAR-10's six files with 12 images each; every byte differs from file to file and from image to image."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*TRAIN, *TEST):
        records = generator.integers(0, 256, (12, RECORD), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    return folder


def test_cifar10_is_read_as_it_is_written(cifar_folder):
    for root in (cifar_folder, cifar_folder.parent):
        source = create_data("cifar10", batch_size=5, seed=0, root=str(root))
        raw = np.frombuffer((cifar_folder / TEST[0]).read_bytes(), np.uint8).reshape(-1, RECORD)
        images, labels = (torch.cat(part) for part in zip(*source.test_batches(), strict=True))
        assert labels.tolist() == raw[:, 0].tolist()
        images = source.to_float(images)
        pixel = raw[7, 1 + 1024 * 2 + 32 * 3 + 9] / 255  # blue, row 3, column 9
        assert images[7, 2, 3, 9].item() == pytest.approx((pixel - MEAN[2]) / STD[2], rel=1e-5)
        assert (source.num_classes, source.in_channels, source.steps_per_epoch, source.test_steps) == (10, 3, 12, 3)


def test_cifar10_training_order_is_a_permutation_and_repeats(cifar_folder):
    first, again, other = (
        torch.cat([x for x, _ in create_data("cifar10", batch_size=7, seed=s, root=str(cifar_folder)).train_batches(1)])
        for s in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first.flatten(1).sum(1).sort().values, other.flatten(1).sum(1).sort().values)


def test_augmentation_starts_anywhere(cifar_folder):
    """Batch k of an epoch does not depend on where the epoch was begun; the epoch's tail can be dropped."""
    options = {"batch_size": 8, "seed": 1, "root": str(cifar_folder), "shift": 4, "flip": True}
    source = create_data("cifar10", **options)
    whole = list(source.train_batches(2))
    assert len(whole) == source.steps_per_epoch == 8 and len(whole[-1][1]) == 4
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[3:], source.train_batches(2, 3), strict=True))
    dropped = create_data("cifar10", **options, drop_last=True)
    assert dropped.steps_per_epoch == len(list(dropped.train_batches(2))) == 7
    plain = create_data("cifar10", **options | {"shift": 0})
    unflipped = create_data("cifar10", **options | {"shift": 0, "flip": False})
    pairs = zip(*(torch.cat([x for x, _ in s.train_batches(0)]) for s in (plain, unflipped)), strict=True)
    kinds = ["same" if torch.equal(a, b) else "mirrored" if torch.equal(a, b.flip(-1)) else "other" for a, b in pairs]
    assert set(kinds) == {"same", "mirrored"} and 15 < kinds.count("same") < 45


def test_shifts_move_all_channels():
    images = torch.rand(2, 3, 6, 5)
    moved = shifted(images, torch.tensor([[1, -2], [0, 0]]), 2)
    assert torch.equal(moved[1], images[1])
    assert torch.equal(moved[0, :, 1:, :3], images[0, :, :5, 2:]) and not moved[0, :, 0].any()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: p.unlink(), "cannot read .*data_batch_2.bin: No such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), r"data_batch_2.bin has 36,875 bytes; expected a multiple"),
        (lambda p: p.write_bytes(b""), "data_batch_2.bin has 0 bytes"),
        (lambda p: p.write_bytes(p.read_bytes()[:RECORD] + b"\x0a" + bytes(RECORD - 1)), "label 10 at offset 3,073"),
    ],
)
def test_damaged_files_are_named(cifar_folder, damage, message):
    damage(cifar_folder / TRAIN[1])
    with pytest.raises(DataError, match=message):
        create_data("cifar10", batch_size=5, seed=0, root=str(cifar_folder))


def test_what_is_missing_is_said(cifar_folder):
    with pytest.raises(DataError, match=r"data\.root must name the folder"):
        create_data("cifar10", batch_size=5, seed=0)
    with pytest.raises(
        DataError, match=r"data\.batch_size: 61 on 1 process\(es\) needs more samples than the data set has"
    ):
        create_data("cifar10", batch_size=61, seed=0, root=str(cifar_folder), drop_last=True)
    with pytest.raises(DataError, match=r"data\.root must name the folder that holds ImageNet.*--data\.generated 64"):
        create_data("imagenet", batch_size=5, seed=0)
    with pytest.raises(DataError, match="no generated data for 'digits'"):
        create_data("digits", batch_size=5, seed=0, generated=4)
    with pytest.raises(ValueError, match=r"unknown data set 'cifar' \(nearest: 'cifar10'\)"):
        create_data("cifar", batch_size=5, seed=0)
    assert {"cifar10", "digits", "imagenet"} <= set(list_data())


@pytest.mark.parametrize("name", SHAPES)
def test_generated(name):
    shape = SHAPES[name]
    source = create_data(name, batch_size=2, seed=0, T=3, generated=5)
    sizes = [list(x.shape) for x, _ in source.train_batches(0)]
    time = [3] if shape.sequences else []
    assert sizes == [[*time, n, *shape.size] for n in (2, 2, 1)] and source.steps_per_epoch == 3
    ((a, labels), *_), ((b, _), *_), ((c, _), *_) = (list(source.train_batches(e)) for e in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and labels.max() < source.num_classes
    assert sum(len(y) for _, y in source.test_batches()) == 2
    if shape.sequences:
        assert torch.equal(a, a.round()) and a.min() == 0 and not torch.equal(a[0], a[1])
    else:
        assert 0.3 < a.std() < 3


def test_random_temporal_delete_keeps_order_and_draws_all():
    x = torch.arange(6.0)[:, None].expand(6, 3).contiguous()
    seen = set()
    for seed in range(200):
        out = random_temporal_delete(x, 4, generator=torch.Generator().manual_seed(seed))
        steps = out[:, 0].tolist()
        assert out.shape == (4, 3) and steps == sorted(set(steps)) and (out == out[:, :1]).all()
        seen.add(tuple(steps))
    assert len(seen) == 15  # every choice of 4 out of 6
    assert torch.equal(random_temporal_delete(x, 6), x)


def test_random_temporal_delete_elsewhere_and_with_gradients():
    x = torch.randn(2, 5, 3, requires_grad=True)
    torch.manual_seed(0)
    out = random_temporal_delete(x, 2, time_dim=1)
    torch.manual_seed(0)
    assert out.shape == (2, 2, 3) and torch.equal(out, random_temporal_delete(x.transpose(0, 1), 2).transpose(0, 1))
    out.sum().backward()
    assert x.grad.sum(1).eq(2).all()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([1.0], 1), TypeError, "x_seq must be a tensor"),
        ((torch.zeros(4, 2), 2.0), TypeError, "T_remain must be an int"),
        ((torch.zeros(4, 2), 0), ValueError, "T_remain must be 1 to T = 4, got 0"),
        ((torch.zeros(4, 2), 5), ValueError, "T_remain must be 1 to T = 4, got 5"),
        ((torch.zeros(4, 2), 1, 2), ValueError, "time_dim must be one of x_seq's 2 dimensions, got 2"),
    ],
)
def test_random_temporal_delete_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        random_temporal_delete(*arguments)


@pytest.mark.parametrize("seed", [20261125, 2**63 - 1])
def test_any_seed_of_torch_serves(seed, cifar_folder):
    """A seed may be large, such as a date; small seeds give the same order as in older versions."""
    for name, options in (("cifar10_dvs", {"generated": 4}), ("cifar10", {"root": str(cifar_folder)})):
        first, again, other = (
            next(create_data(name, batch_size=2, seed=s, **options).train_batches(3))[0] for s in (seed, seed, seed - 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)
    small = create_data("cifar10", batch_size=60, seed=5, root=str(cifar_folder))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5 * 1_000_003 + 2))
    assert torch.equal(next(small.train_batches(2))[1], small.train_labels[order])


@pytest.mark.parametrize(
    "key, value, least", [("batch_size", 0, 1), ("T", 0, 1), ("shift", -1, 0), ("generated", -2, 0)]
)
def test_options_that_make_no_sense_are_named(key, value, least):
    with pytest.raises(ValueError, match=f"{key} must be at least {least}, got {value}"):
        create_data("cifar10_dvs", **{"batch_size": 2, "seed": 0, key: value})
