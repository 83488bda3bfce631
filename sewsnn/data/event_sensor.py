"""A simulated event sensor of 128 x 128 pixels that sees a moving image, and the AEDAT 3.1 file that it writes.

The light of a pixel and its logarithm are whole numbers, and all sums are exact. So every machine gets the same events
from the same seed.
"""

import math
import struct
from typing import NamedTuple

import numpy as np

from sewsnn.data.events import Events

SIZE = 128  # width and height of the sensor in pixels
STEPS, STEP_US = 40, 8000  # the sensor compares its light 40 times, every 8 ms
LENGTH_US = STEPS * STEP_US  # 0.32 s
THRESHOLD = 0.7  # change of the logarithm of the light at which a pixel sends an event
DARK = 0.3  # light of the background as a fraction of the brightest light
_LEVELS = 1024  # steps of the light
_UNIT = 256  # weights of the interpolation and places in the image are multiples of 1 / 256
_PACKET_EVENTS = 4096
_HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Simulated by sewsnn\r\n#!END-HEADER\r\n"
# The logarithm of each level of the light, in thousandths.
_LOG = np.array([round(1000 * math.log(DARK + i / _LEVELS)) for i in range(_LEVELS + 1)])


class Motion(NamedTuple):
    """How an image moves over the sensor: one turn on a circle.

    Attributes:
        x: column of the circle's centre in pixels.
        y: row of the circle's centre in pixels.
        reach: radius of the circle in pixels.
        phase: angle at the start in turns, 0 to 1.
        direction: 1 or -1, the sense of the turn.
        pitch: width of an image pixel in sensor pixels.
        noise: number of noise events: random pixels, times and polarities.
    """

    x: float
    y: float
    reach: float
    phase: float
    direction: int
    pitch: float
    noise: int


def record(image: np.ndarray, motion: Motion, random: np.random.RandomState) -> Events:
    """Returns the events of ``LENGTH_US`` microseconds in which an image moves over the sensor.

    The image is enlarged linearly to ``motion.pitch`` sensor pixels per image pixel. Its centre is at
    ``(x + reach cos a, y + reach sin a)``, where a runs through one turn. A pixel remembers the logarithm
    ``l = log(DARK + light)`` of its last event. When the logarithm differs from that by n thresholds or more, the pixel
    sends n events of that polarity, spread over the step of ``STEP_US`` microseconds.

    Args:
        image: ``[H, W]`` whole numbers from 0 (dark) to 16 (bright).
        motion: the path of the image.
        random: source of the noise and of the time stamps within a step. ``RandomState`` gives the same numbers in
            every version of NumPy.

    Returns:
        :class:`~sewsnn.data.events.Events`, sorted by time, with t from 0 to ``LENGTH_US - 1``.
    """
    threshold = round(1000 * THRESHOLD)
    seen = None
    parts = []
    for step, light in enumerate(_lights(image, motion)):
        level = _LOG[light]
        if seen is None:
            seen = level.copy()
            continue
        count = (np.abs(level - seen) // threshold) * np.sign(level - seen)
        seen += count * threshold
        y, x = np.nonzero(count)
        number = np.abs(count[y, x])
        y, x, p, most = (np.repeat(a, number) for a in (y, x, count[y, x] > 0, number))
        nth = np.arange(len(most)) - np.repeat(np.cumsum(number) - number, number)
        parts.append(((step - 1) * STEP_US + _whole((nth + random.random_sample(len(nth))) / most, STEP_US), x, y, p))
    spots = [_whole(random.random_sample(motion.noise), most) for most in (LENGTH_US, SIZE, SIZE, 2)]
    t, x, y, p = (np.concatenate(fields).astype(np.int64) for fields in zip(*parts, spots, strict=True))
    order = np.argsort(t, kind="stable")
    return Events(t[order], x[order], y[order], p[order])


def _lights(image: np.ndarray, motion: Motion):
    """Yields the light ``[SIZE, SIZE]`` before the first step and after each step, in 0 to ``_LEVELS``."""
    for step in range(STEPS + 1):
        angle = 2 * math.pi * (motion.phase + motion.direction * step / STEPS)
        across = _weights(motion.x + motion.reach * math.cos(angle), motion.pitch, image.shape[1])
        down = _weights(motion.y + motion.reach * math.sin(angle), motion.pitch, image.shape[0])
        # All products and sums are whole numbers below 2^24, so float32 holds them exactly, in any order of summation.
        light = down @ image.astype(np.float32) @ across.T
        yield light.astype(np.int64) * _LEVELS // (16 * _UNIT * _UNIT)


def _weights(centre: float, pitch: float, pixels: int) -> np.ndarray:
    """Returns the weight of each image pixel for each sensor pixel, ``[SIZE, pixels]`` whole numbers up to
    ``_UNIT``."""
    place = np.rint((np.arange(SIZE) - round(_UNIT * centre) / _UNIT) / pitch * _UNIT) + _UNIT * (pixels - 1) / 2
    return np.maximum(0, _UNIT - np.abs(place[:, None] - _UNIT * np.arange(pixels))).astype(np.float32)


def _whole(fractions: np.ndarray, most: int) -> np.ndarray:
    return np.minimum((fractions * most).astype(np.int64), most - 1)


def aedat3(events: Events) -> bytes:
    """Returns the content of an AEDAT 3.1 file with these events; :func:`sewsnn.data.aedat.read_aedat3` describes it.

    Args:
        events: sorted by time, with t below 2^31 microseconds.
    """
    words = np.empty((len(events.t), 2), "<u4")
    words[:, 0] = 1 | events.p << 1 | events.y << 2 | events.x << 17
    words[:, 1] = events.t
    parts = [_HEADER]
    for first in range(0, len(words), _PACKET_EVENTS):
        packet = words[first : first + _PACKET_EVENTS]
        parts += [struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(packet), len(packet), len(packet)), packet.tobytes()]
    return b"".join(parts)
