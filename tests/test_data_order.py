"""The order of samples: in an epoch, in the share of a process, and in place of a damaged sample."""

import pytest
import torch

from sewsnn.data import random_temporal_delete
from sewsnn.data.images import ImagesInMemory
from sewsnn.data.loading import LEAST_BATCH, MOST_IN_A_ROW, LoadedSource
from sewsnn.data.source import Options
from sewsnn.errors import DataError, UnreadableError
from sewsnn.train.schema import DataConfig


class Numbers:
    """Sample i is the number i and its seed; the samples in ``damaged`` raise."""

    def __init__(self, count, damaged=(), error=None):
        self.count, self.damaged, self.loads = count, set(damaged), []
        self.error = error or DataError("damaged")

    def __len__(self):
        return self.count

    def load(self, index, seed):
        if index in self.damaged:
            raise self.error
        self.loads.append((index, seed))
        return torch.full((1,), float(index)), 1000 + index


def source(train, test=None, sequences=False, **options):
    options = Options(**{"batch_size": 4, "seed": 3, "on_corrupt": "skip", **options})
    return LoadedSource(train, test or train, 1, 1, sequences, options)


def numbers(batches):
    return [int(n) for x, _ in batches for n in x.flatten()]


def test_each_sample_has_a_seed_of_its_own_in_each_epoch_and_the_test_has_none():
    train = Numbers(20)
    for epoch in range(3):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(3 * 1_000_003 + epoch)).tolist()
        assert numbers(source(train).train_batches(epoch)) == order
    seeds = [seed for _, seed in train.loads]
    assert len(set(seeds)) == 60 and all(seed is not None for seed in seeds)
    train.loads.clear()
    assert numbers(source(train).test_batches()) == list(range(20))
    assert train.loads == [(i, None) for i in range(20)]


@pytest.mark.parametrize("count, world, drop_last", [(21, 1, False), (21, 2, False), (23, 3, True), (26, 3, False)])
def test_processes_share_each_batch_and_no_sample_is_twice(count, world, drop_last):
    order = numbers(source(Numbers(count), batch_size=count).train_batches(5))
    shares = [source(Numbers(count), world=world, rank=rank, drop_last=drop_last) for rank in range(world)]
    parts = [[numbers([batch]) for batch in share.train_batches(5)] for share in shares]
    together = [n for step in zip(*parts, strict=True) for part in step for n in part]
    assert together == order[: len(together)] and len({share.steps_per_epoch for share in shares}) == 1
    assert shares[0].steps_per_epoch == len(parts[0])
    left_out = count - len(together)
    assert left_out < world if not drop_last else left_out == count % (4 * world)
    tested = [n for share in shares for n in numbers(share.test_batches())]
    assert tested == list(range(count))
    assert [share.test_steps for share in shares] == [len(list(share.test_batches())) for share in shares]


def test_the_next_readable_sample_takes_the_place_of_a_damaged_one():
    """The next sample replaces it, with its label; the first follows the last. A test sample is not replaced."""
    whole = numbers(source(Numbers(12)).train_batches(0))
    s = source(Numbers(12, damaged=[4, 5, 11]))
    batches = list(s.train_batches(0))
    assert numbers(batches) == [{4: 6, 5: 6, 11: 0}.get(n, n) for n in whole]
    assert torch.cat([y for _, y in batches]).tolist() == [1000 + n for n in numbers(batches)]
    assert set(s.corrupt) == {"sample 4", "sample 5", "sample 11"}
    assert numbers(s.test_batches()) == [0, 1, 2, 3, 6, 7, 8, 9, 10]


def test_how_many_damaged_samples_are_still_damage():
    """Limits of damaged samples in a row and in a test batch; beyond them the disk is the cause."""
    most = source(Numbers(40, damaged=range(MOST_IN_A_ROW - 1)), batch_size=40)
    assert len(numbers(most.train_batches(0))) == 40
    with pytest.raises(DataError, match="16 samples in a row"):
        list(source(Numbers(40, damaged=range(MOST_IN_A_ROW)), batch_size=40).train_batches(0))
    tests = Numbers(40, damaged=range(LEAST_BATCH - 1))
    assert numbers(source(Numbers(40), tests, batch_size=LEAST_BATCH - 1).test_batches()) == list(range(7, 40))
    with pytest.raises(DataError, match="8 samples in a row"):
        list(source(Numbers(40), Numbers(40, damaged=range(8)), batch_size=LEAST_BATCH).test_batches())


def test_a_file_that_is_gone_is_left_out_a_disk_that_fails_is_not():
    gone, failing = UnreadableError("gone"), UnreadableError("input/output error")
    gone.missing = True
    assert len(numbers(source(Numbers(9, [3], gone)).train_batches(0))) == 9
    with pytest.raises(DataError, match="input/output error"):
        list(source(Numbers(9, [3], failing)).train_batches(0))
    try:
        try:
            raise FileNotFoundError
        except FileNotFoundError:
            raise UnreadableError("no such file") from None
    except UnreadableError as error:
        assert len(numbers(source(Numbers(9, [3], error)).train_batches(0))) == 9


def test_sequences_are_stacked_behind_their_time():
    class Sequences(Numbers):
        def load(self, index, seed):
            return torch.arange(3.0).view(3, 1) + 10 * index, index

    x, y = next(source(Sequences(4), sequences=True).test_batches())
    assert x.shape == (3, 4, 1) and y.tolist() == [0, 1, 2, 3] and x[2, :, 0].tolist() == [2, 12, 22, 32]


def test_shifts_and_flips_belong_to_the_image_not_to_the_batch():
    """An image moves equally for any number of processes and any first step, and differently in each epoch."""
    images = torch.rand(24, 1, 6, 6)

    def moved(epoch, **options):
        options = Options(seed=2, shift=2, flip=True, **options)
        s = ImagesInMemory((images, torch.arange(24)), (images, torch.arange(24)), 24, options)
        return {int(label): x for xs, ys in s.train_batches(epoch) for x, label in zip(xs, ys, strict=True)}

    whole = moved(1, batch_size=8)
    parts = moved(1, batch_size=3, world=2, rank=0) | moved(1, batch_size=3, world=2, rank=1)
    assert whole.keys() == parts.keys() == set(range(24))
    assert all(torch.equal(x, parts[label]) for label, x in whole.items())
    other = moved(2, batch_size=8)
    assert sum(torch.equal(x, other[label]) for label, x in whole.items()) < 8


def test_shifts_are_drawn_from_all_that_are_allowed():
    """A single bright pixel moves by -2 to 2 rows and columns; each of the 25 shifts is about equally frequent."""
    images = torch.zeros(1000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    data = (images, torch.arange(1000))
    s = ImagesInMemory(data, data, 1000, Options(batch_size=1000, seed=0, shift=2))
    ((moved, _),) = s.train_batches(0)
    places = moved[:, 0].nonzero()[:, 1:].sub(4)
    assert len(places) == 1000 and moved.sum() == 1000
    counts = torch.bincount((places[:, 0] + 2) * 5 + places[:, 1] + 2, minlength=25)
    assert len(counts) == 25 and counts.min() > 15 and counts.max() < 75


def test_a_single_time_step_of_any_dimension_can_be_kept():
    x = torch.arange(6.0).view(2, 3)
    generator = torch.Generator().manual_seed(1)
    kept = random_temporal_delete(x, 1, time_dim=-2, generator=generator)
    step = int(torch.randperm(2, generator=torch.Generator().manual_seed(1))[0])
    assert torch.equal(kept, x[step : step + 1]) and random_temporal_delete(x, 1, -1).shape == (2, 1)


def test_defaults_change_no_sample_and_are_those_of_the_configuration():
    defaults, configured = Options(batch_size=64, seed=0), DataConfig()
    shared = vars(defaults).keys() & vars(configured).keys()
    assert len(shared) > 15 and all(getattr(defaults, name) == getattr(configured, name) for name in shared)
    assert (defaults.rank, defaults.world, defaults.T) == (0, 1, 4) and configured.T_train == 0
    for name in ("shift", "flip", "drop_last", "generated", "erase", "workers", "frame_us", "test_size"):
        assert not getattr(defaults, name), name
    assert (defaults.image_size, defaults.resize, defaults.scale_min, defaults.augment) == (224, 256, 0.08, "none")


@pytest.mark.parametrize("edge", [{"rank": 2, "world": 3}, {"scale_min": 1.0, "erase": 1.0}, {"image_size": 256}])
def test_the_largest_values_are_allowed(edge):
    options = Options(batch_size=1, seed=0, **edge)
    assert options.test_pixels == edge.get("image_size", 224)
    key = "rank" if "rank" in edge else "erase" if "erase" in edge else "image_size"
    with pytest.raises(ValueError, match="resize" if key == "image_size" else key):
        Options(batch_size=1, seed=0, **edge | {key: edge[key] + 1})
