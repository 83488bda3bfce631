"""Events of a dynamic vision sensor, and their conversion to frames: :func:`integrate_events`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SPLITS = ("number", "time", "duration")
_MOST_COUNTERS = 2**30  # limit of T * 2 * H * W; a larger value means a wrong frame_us, or does not fit into memory


class Events(NamedTuple):
    """N events, sorted by time.

    Attributes:
        t: ``[N]`` int64, time in microseconds.
        x: ``[N]``, column of the pixel.
        y: ``[N]``, row of the pixel.
        p: ``[N]``, polarity: 1 if the pixel became brighter, 0 if it became darker.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


def integrate_events(
    events: Any, frames_number: int | None, split_by: str, H: int, W: int, *, frame_us: int = 0
) -> Tensor:
    """Counts events into frames: ``frames[i, p, y, x]`` is the number of events with polarity p of pixel (x, y) in
    frame i.

    With N events at times t_0 <= ... <= t_(N-1) and T frames, event j belongs to frame

    - ``number``: ``min(j // (N // T), T - 1)``. Each frame has the same number of events, and the last one also takes
      the remainder. If N < T, the last frame takes all events.
    - ``time``: ``min((t_j - t_0) // d, T - 1)`` with ``d = max(1, (t_(N-1) - t_0) // T)``. Each frame has the same
      duration, and the last one also takes the remainder. The start of a frame is inclusive, its end is exclusive,
      except that the last frame includes the last event.
    - ``duration``: ``(t_j - t_0) // frame_us``. Events after T frames are dropped, and frames after the last event are
      zero. Sequences of any length therefore give batches with the same T.

    Args:
        events: :class:`Events`, a structured array (such as tonic's), a dict, or any object with 1-D integer arrays
            ``t`` (microseconds, not decreasing), ``x`` (0 to W - 1), ``y`` (0 to H - 1) and ``p`` (0 or 1).
        frames_number: T, at least 1. With ``duration``, None means as many frames as all events need.
        split_by: ``"number"``, ``"time"`` or ``"duration"``.
        H: height of the sensor in pixels.
        W: width of the sensor in pixels.
        frame_us: microseconds per frame. Required with ``duration``, not allowed otherwise (default 0).

    Returns:
        ``[T, 2, H, W]`` int32 on the CPU; all zero if there are no events.

    Raises:
        TypeError: an argument or an array has the wrong type; the message names it.
        ValueError: an argument is out of range, the arrays differ in length, t decreases, or the result would have more
            than 2^30 counters; the message names the argument.

    Source: ``number`` is the method of the SEW ResNet paper. ``number`` and ``time`` give the same frames as
    SpikingJelly.
    """
    for name, value in {"H": H, "W": W, "frame_us": frame_us}.items():
        _check_int(name, value, 0 if name == "frame_us" else 1)
    if split_by not in SPLITS:
        raise ValueError(f"split_by must be one of {', '.join(SPLITS)}, got {split_by!r}")
    if (split_by == "duration") != bool(frame_us):
        raise ValueError(
            f'frame_us must be set if, and only if, split_by is "duration"; got {frame_us} and {split_by!r}'
        )
    if frames_number is not None or split_by != "duration":
        _check_int("frames_number", frames_number, 1)
    t, x, y, p = _checked(events, H, W)
    span = int(t[-1]) - int(t[0]) if len(t) else 0
    T = frames_number or span // frame_us + 1
    if T * 2 * H * W > _MOST_COUNTERS:
        raise ValueError(
            f"frames_number: {T:,} frames of {W} x {H} pixels exceed the limit of {_MOST_COUNTERS:,} counters"
        )
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
    """Returns ``[T + 1]`` indices: frame i has the events ``bounds[i]`` to ``bounds[i + 1] - 1``."""
    N = len(t)
    if split_by == "number":
        return np.append(np.arange(T) * (N // T), N)
    # A step beyond the last event is long enough, and T such steps fit into 64 bits.
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
    """Returns t (int64), x, y and p after tests of their types, lengths, ranges and order."""
    fields = []
    for name, most in (("t", None), ("x", W), ("y", H), ("p", 2)):
        array = np.asarray(_field(events, name))
        if array.ndim != 1 or array.dtype.kind not in "biu":
            raise TypeError(f"events: {name} must be a 1-D array of integers, got {array.ndim}-D of {array.dtype}")
        if fields and len(array) != len(fields[0]):
            raise ValueError(f"events: {name} has {len(array):,} entries, but t has {len(fields[0]):,}")
        array = _times(array) if name == "t" else np.ascontiguousarray(array)
        if most is not None and len(array) and not (array.min() >= 0 and array.max() < most):
            j = int(((array < 0) | (array >= most)).argmax())
            raise ValueError(f"events: {name} must be 0 to {most - 1}, got {array[j]} at event {j:,}")
        # NumPy does not add uint64 to signed integers. The conversion is exact, because the values are in range.
        fields.append(array.astype(np.int64) if name != "t" and array.dtype == np.uint64 else array)
    t = fields[0]
    back = t[1:] < t[:-1]
    if back.any():
        j = int(back.argmax()) + 1
        raise ValueError(f"events: t must not decrease, but it does at event {j:,} (from {t[j - 1]} to {t[j]})")
    return fields


def _times(t: np.ndarray) -> np.ndarray:
    """Converts t to int64. If uint64 values exceed int64, the first time is subtracted: only differences matter."""
    if t.dtype == np.uint64 and len(t) and t.max() >= 2**63:
        first = t.min()
        if t.max() - first >= 2**63:
            raise ValueError(f"events: t must span less than 2^63 microseconds, got {t.max() - first}")
        t = t - first
    return np.ascontiguousarray(t, np.int64)


def _field(events: Any, name: str) -> Any:
    names = getattr(getattr(events, "dtype", None), "names", None)
    if names or isinstance(events, Mapping):
        if name in (names or events):
            return events[name]
    elif hasattr(events, name):
        return getattr(events, name)
    raise TypeError(f"events must have t, x, y and p (a structured array, a dict or Events); {name} is missing")
