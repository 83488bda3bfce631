"""Simulates an event sensor of 128 x 128 pixels that sees moving handwritten digits."""

import numpy as np
from sklearn.datasets import load_digits
from torch import from_numpy
from torch.nn.functional import interpolate

SIZE = 128
THRESHOLD = 0.5  # change of the logarithm of the light that makes a pixel send an event
STEP_US = 1000


def images_of(classes, number):
    """``number`` enlarged digits of each class: ``[classes, number, 128, 128]``; 0 is dark, 1 is bright."""
    data = load_digits()
    chosen = np.stack([data.images[data.target == label][:number] for label in classes]) / 16
    enlarged = interpolate(from_numpy(chosen), (SIZE, SIZE), mode="bilinear", align_corners=False)
    return enlarged.numpy()


def record(image, kind="circle", steps=10, seed=0, reach=6):
    """Events ``(t, x, y, p)``, sorted by time, of a digit that moves in a ``circle`` of ``reach`` pixels, lights up
    (``on``) or goes out (``off``).

    A pixel sends an event whenever the logarithm of its light has changed by THRESHOLD since its last event.
    """
    generator = np.random.default_rng(seed)
    angles = generator.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, steps + 1)
    moves = np.rint(reach * np.stack([np.sin(angles), np.cos(angles)], 1)).astype(int)
    lights = {"circle": np.ones(steps + 1), "on": np.linspace(0, 1, steps + 1), "off": np.linspace(1, 0, steps + 1)}
    if kind != "circle":
        moves[:] = moves[0]

    def seen(step):
        return np.log(0.1 + lights[kind][step] * np.roll(image, moves[step], (0, 1)))

    last = seen(0)
    events = []
    for step in range(1, steps + 1):
        change = seen(step) - last
        y, x = np.nonzero(np.abs(change) >= THRESHOLD)
        polarity = change[y, x] > 0
        last[y, x] += np.where(polarity, THRESHOLD, -THRESHOLD)
        t = np.sort(generator.integers(0, STEP_US, len(y))) + (step - 1) * STEP_US
        events.append(np.stack([t, x, y, polarity], 1))
    return np.concatenate(events)
