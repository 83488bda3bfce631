"""Events of a dynamic vision sensor, and the frames they are counted into: :func:`integrate_events`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SPLITS = ("number", "time", "duration")
_MOST_COUNTERS = 2**30  # T * 2 * H * W; more is a mistake in frame_us, or does not fit into memory


class Events(NamedTuple):
    """N events, in the order of time.

    Fields:
        t: ``[N]`` int64, microseconds.
        x, y: ``[N]``, pixels.
        p: ``[N]``, polarity; 1: it became brighter, 0: darker.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


def integrate_events(
    events: Any, frames_number: int | None, split_by: str, H: int, W: int, *, frame_us: int = 0
) -> Tensor:
    """Counts events into frames: ``frames[i, p, y, x]`` is how many events of polarity p pixel (x, y) had in frame i.

    With N events at t_0 <= ... <= t_(N-1) and T frames, event j is in frame

    - ``number``: ``min(j // (N // T), T - 1)``: equally many events in each, the last takes the remainder too. If
      N < T, the last has them all.
    - ``time``: ``min((t_j - t_0) // d, T - 1)``, ``d = max(1, (t_(N-1) - t_0) // T)``: equal time; a frame has its
      first microsecond and not the next one's; the last takes the remainder too, and the last event.
    - ``duration``: ``(t_j - t_0) // frame_us``. Events after T frames are left out, frames after the last event are
      zero: so sequences of any length make batches of one T.

    Args:
        events: :class:`Events`, or anything else with integer arrays ``t``, ``x``, ``y``, ``p`` by name: a structured
            array (such as tonic's), a dict.
        frames_number: T. None, with ``duration`` only: as many frames as it takes to have all events.
        split_by: ``number``, ``time`` or ``duration``.
        H, W: pixels of the sensor.
        frame_us: microseconds per frame, with ``duration`` only.

    Returns:
        ``[T, 2, H, W]`` int32; all zero without events.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source: ``number`` is the paper's; ``number`` and ``time`` give the frames that SpikingJelly gives.
    """
    for name, value in {"H": H, "W": W, "frame_us": frame_us}.items():
        _check_int(name, value, 0 if name == "frame_us" else 1)
    if split_by not in SPLITS:
        raise ValueError(f"split_by must be one of {', '.join(SPLITS)}, got {split_by!r}")
    if (split_by == "duration") != bool(frame_us):
        raise ValueError(
            f'frame_us must be given with split_by="duration", and only then; got {frame_us}, {split_by!r}'
        )
    if frames_number is not None or split_by != "duration":
        _check_int("frames_number", frames_number, 1)
    t, x, y, p = _checked(events, H, W)
    span = int(t[-1]) - int(t[0]) if len(t) else 0
    T = frames_number or span // frame_us + 1
    if T * 2 * H * W > _MOST_COUNTERS:
        raise ValueError(f"frames_number: {T:,} frames of {W} x {H} pixels are more than {_MOST_COUNTERS:,} counters")
    bounds = _bounds(t, span, T, split_by, frame_us)
    place = p.astype(np.intp)
    place *= H
    place += y
    place *= W
    place += x
    frames = np.empty((T, 2 * H * W), np.int32)
    for i in range(T):
        frames[i] = np.bincount(place[bounds[i] : bounds[i + 1]], minlength=2 * H * W)
    return torch.from_numpy(frames).view(T, 2, H, W)


def _bounds(t: np.ndarray, span: int, T: int, split_by: str, frame_us: int) -> np.ndarray:
    """``[T + 1]``: frame i has events ``bounds[i]`` to ``bounds[i + 1] - 1``."""
    N = len(t)
    if split_by == "number":
        return np.append(np.arange(T) * (N // T), N)
    # A step beyond the last event is as good as any longer one, and T of them are no larger than 64 bits.
    step = max(1, span // T) if split_by == "time" else min(frame_us, span + 1)
    bounds = np.searchsorted(t - t[:1], np.arange(T + 1) * step)
    if split_by == "time":
        bounds[T] = N
    return bounds


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _checked(events: Any, H: int, W: int) -> list[np.ndarray]:
    """t (int64), x, y, p, of one length, in range and in order."""
    fields = []
    for name, most in (("t", None), ("x", W), ("y", H), ("p", 2)):
        array = np.asarray(_field(events, name))
        if array.ndim != 1 or array.dtype.kind not in "biu":
            raise TypeError(f"events: {name} must be a 1-D array of integers, got {array.ndim}-D of {array.dtype}")
        if fields and len(array) != len(fields[0]):
            raise ValueError(f"events: {name} has {len(array):,} entries and t {len(fields[0]):,}")
        array = _times(array) if name == "t" else np.ascontiguousarray(array)
        if most is not None and len(array) and not (array.min() >= 0 and array.max() < most):
            j = int(((array < 0) | (array >= most)).argmax())
            raise ValueError(f"events: {name} must be 0 to {most - 1}, is {array[j]} at event {j:,}")
        # NumPy adds no uint64 to a signed integer; of what is in range nothing is lost.
        fields.append(array.astype(np.int64) if name != "t" and array.dtype == np.uint64 else array)
    t = fields[0]
    back = t[1:] < t[:-1]
    if back.any():
        j = int(back.argmax()) + 1
        raise ValueError(f"events: t must not decrease, does at event {j:,} (from {t[j - 1]} to {t[j]})")
    return fields


def _times(t: np.ndarray) -> np.ndarray:
    """As int64; of uint64 beyond that the first is subtracted, for differences are all that counts."""
    if t.dtype == np.uint64 and len(t) and t.max() >= 2**63:
        first = t.min()
        if t.max() - first >= 2**63:
            raise ValueError(f"events: t must span less than 2^63 microseconds, spans {t.max() - first}")
        t = t - first
    return np.ascontiguousarray(t, np.int64)


def _field(events: Any, name: str) -> Any:
    names = getattr(getattr(events, "dtype", None), "names", None)
    if names or isinstance(events, Mapping):
        if name in (names or events):
            return events[name]
    elif hasattr(events, name):
        return getattr(events, name)
    raise TypeError(f"events must have t, x, y and p (a structured array, a dict, Events); {name} is missing")
