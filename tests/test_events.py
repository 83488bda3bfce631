"""Frames from events, compared with a simple loop; and data sets of tonic as a source."""

import numpy as np
import pytest
import torch

from sewsnn.data import from_tonic, integrate_events
from sewsnn.data.events import Events
from sewsnn.data.source import Options
from sewsnn.errors import DataError

H, W = 5, 7
TONIC = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])


def recording(N, seed=0, span=1000):
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(0, span, N)) + 12345
    return Events(t, generator.integers(0, W, N), generator.integers(0, H, N), generator.integers(0, 2, N))


def by_loop(events, T, frame_of):
    frames = torch.zeros(T, 2, H, W, dtype=torch.int32)
    for j, (_, x, y, p) in enumerate(zip(*events, strict=True)):
        i = frame_of(j)
        if i < T:
            frames[i, p, y, x] += 1
    return frames


@pytest.mark.parametrize("N, T, span", [(300, 4, 1000), (301, 16, 40), (7, 7, 100), (5, 8, 100), (1, 3, 5), (50, 6, 1)])
def test_every_split_is_its_rule(N, T, span):
    events = recording(N, span=span)
    t = (events.t - events.t[0]).tolist()

    def by_number(j):  # frame i has events i (N // T) to (i + 1) (N // T) - 1, the last all from (T - 1) (N // T) on
        return next((i for i in range(T - 1) if i * (N // T) <= j < (i + 1) * (N // T)), T - 1)

    def by_time(j):
        d = max(1, t[-1] // T)
        return next((i for i in range(T - 1) if i * d <= t[j] < (i + 1) * d), T - 1)

    for split_by, rule in (("number", by_number), ("time", by_time)):
        frames = integrate_events(events, T, split_by, H, W)
        assert frames.dtype == torch.int32 and torch.equal(frames, by_loop(events, T, rule))
        assert frames.sum() == N
    for frame_us in (1, 30, 10**6):
        frames = integrate_events(events, T, "duration", H, W, frame_us=frame_us)
        assert torch.equal(frames, by_loop(events, T, lambda j, us=frame_us: t[j] // us))
    whole = integrate_events(events, None, "duration", H, W, frame_us=30)
    assert whole.sum() == N and len(whole) == t[-1] // 30 + 1


def test_a_frame_boundary_belongs_to_the_next_frame():
    t = np.array([0, 24, 25, 50, 99, 100])
    events = {"t": t, "x": np.arange(6), "y": np.zeros(6, int), "p": np.ones(6, int)}
    frames = integrate_events(events, 4, "time", H, W)  # d = 25
    assert [frame[1, 0].nonzero().flatten().tolist() for frame in frames] == [[0, 1], [2], [3], [4, 5]]
    frames = integrate_events(events, 3, "duration", H, W, frame_us=25)
    assert [frame[1, 0].nonzero().flatten().tolist() for frame in frames] == [[0, 1], [2], [3]]


def test_events_come_in_any_shape_with_names():
    events = recording(40)
    structured = np.zeros(40, TONIC)
    for name in events._fields:
        structured[name] = getattr(events, name)
    tensors = {name: torch.from_numpy(getattr(events, name)) for name in events._fields}
    first, *others = (integrate_events(e, 3, "time", H, W) for e in (events, structured, tensors, events._asdict()))
    assert all(torch.equal(first, other) for other in others)
    assert not integrate_events(structured[:0], 3, "time", H, W).any()
    assert integrate_events(structured[:0], None, "duration", H, W, frame_us=9).shape == (1, 2, H, W)


GOOD = recording(10)


@pytest.mark.parametrize(
    "events, arguments, error, message",
    [
        (GOOD, (0, "number", H, W), ValueError, "frames_number must be at least 1, got 0"),
        (GOOD, (2.0, "number", H, W), TypeError, "frames_number must be an int, got float"),
        (GOOD, (None, "time", H, W), TypeError, "frames_number must be an int, got NoneType"),
        (GOOD, (2, "count", H, W), ValueError, "split_by must be one of number, time, duration, got 'count'"),
        (GOOD, (2, "time", 0, W), ValueError, "H must be at least 1"),
        (GOOD, (2, "time", H, True), TypeError, "W must be an int"),
        (GOOD, (2, "duration", H, W), ValueError, "frame_us must be set if, and only if, split_by is .duration"),
        (GOOD, (2**30, "time", H, W), ValueError, "frames_number: 1,073,741,824 frames of 7 x 5 pixels exceed"),
        (GOOD._replace(x=GOOD.x + W), (2, "time", H, W), ValueError, "events: x must be 0 to 6, got .* at event 0"),
        (GOOD._replace(y=GOOD.y - 9), (2, "time", H, W), ValueError, "events: y must be 0 to 4, got -"),
        (GOOD._replace(p=GOOD.p * 2), (2, "time", H, W), ValueError, "events: p must be 0 to 1, got 2"),
        (GOOD._replace(p=GOOD.p[:9]), (2, "time", H, W), ValueError, "events: p has 9 entries, but t has 10"),
        (
            GOOD._replace(t=GOOD.t[::-1]),
            (2, "time", H, W),
            ValueError,
            "events: t must not decrease, but it does at event 1 .from",
        ),
        (GOOD._replace(t=GOOD.t / 2), (2, "time", H, W), TypeError, "events: t must be a 1-D array of integers"),
        (GOOD._replace(x=GOOD.x[None]), (2, "time", H, W), TypeError, "events: x must be a 1-D array"),
        ({"t": GOOD.t, "x": GOOD.x, "y": GOOD.y}, (2, "time", H, W), TypeError, "p is missing"),
        (np.zeros((4, 4), int), (2, "time", H, W), TypeError, "events must have t, x, y and p"),
    ],
)
def test_wrong_arguments_are_named(events, arguments, error, message):
    with pytest.raises(error, match=message):
        integrate_events(events, *arguments)


class TonicLike:
    """A data set like those of tonic: ``len`` and ``[i] -> (structured array, label)``."""

    def __init__(self, N, label=lambda i: i % 3):
        self.N, self.label = N, label

    def __len__(self):
        return self.N

    def __getitem__(self, i):
        events = recording(100 + i, i)
        structured = np.zeros(100 + i, TONIC)
        for name in TONIC.names:
            structured[name] = getattr(events, name)
        return structured, self.label(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tonic_data_set_is_a_source(workers):
    options = Options(batch_size=2, seed=0, T=4, split_by="time", workers=workers)
    source = from_tonic(TonicLike(5), TonicLike(3), 3, (W, H, 2), options)
    assert (source.in_channels, source.sequences, source.steps_per_epoch) == (2, True, 3)
    (x, y), (last, label) = source.test_batches()
    assert x.shape == (4, 2, 2, H, W) and y.tolist() == [0, 1] and label.tolist() == [2]
    assert torch.equal(last[:, 0].int(), integrate_events(recording(102, 2), 4, "time", H, W))
    assert source.to_float(last).dtype == torch.float32
    assert sorted(int(x.sum()) for x, _ in source.train_batches(0)) != [] and len(list(source.train_batches(1))) == 3


def test_what_is_wrong_with_a_tonic_data_set_is_said():
    options = Options(batch_size=1, seed=0)
    for size in ((W, H, 3), (W, H), (0, H, 2)):
        with pytest.raises(ValueError, match=r"sensor_size must be \(W, H, 2\)"):
            from_tonic(TonicLike(1), TonicLike(1), 3, size, options)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        from_tonic(TonicLike(1), TonicLike(1), 0, (W, H, 2), options)
    with pytest.raises(ValueError, match=r"data.frame_us .* must be set if, and only if, data.split_by is duration"):
        from_tonic(TonicLike(1), TonicLike(1), 3, (W, H, 2), Options(batch_size=1, seed=0, split_by="duration"))
    with pytest.raises(DataError, match=r"test\[1\]: the label must be 0 to 2, got 3"):
        list(from_tonic(TonicLike(2), TonicLike(2, lambda i: 3 * i), 3, (W, H, 2), options).test_batches())
    with pytest.raises(DataError, match=r"test\[0\]: events: x must be 0 to 3"):
        list(from_tonic(TonicLike(2), TonicLike(2), 3, (4, H, 2), options).test_batches())


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("split_by", ["number", "time"])
def test_every_integer_type(kind, split_by):
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 200, 500))
    x, y, p = (rng.integers(0, most, 500) for most in (7, 5, 2))
    expected = integrate_events({"t": t, "x": x, "y": y, "p": p}, 4, split_by, 5, 7)
    events = {name: values.astype(kind) for name, values in (("t", t), ("x", x), ("y", y), ("p", p))}
    assert torch.equal(integrate_events(events, 4, split_by, 5, 7), expected)
    if kind == "uint64":  # beyond int64
        events["t"] = events["t"] + np.uint64(2**63 + 5)
        assert torch.equal(integrate_events(events, 4, split_by, 5, 7), expected)
        events["t"][:3] = 0
        with pytest.raises(ValueError, match="t must span less"):
            integrate_events(events, 4, split_by, 5, 7)
