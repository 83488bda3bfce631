"""Bars on stderr and lines on stdout: how far something is, and how many images a second it takes. What cannot be shown
(the terminal is closed, the reader gone, the disk of a log full) does not end work of hours."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator

from torch import Tensor
from tqdm import tqdm

_INTERVAL = 0.5  # seconds between two drawings
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}, {speed}{postfix}]"


class _Lossy:
    """stderr, which loses what it cannot write."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def __eq__(self, other):  # tqdm asks whether it is stderr itself
        return self._stream is other or self is other

    __hash__ = object.__hash__


class Bar(tqdm):
    """``tqdm`` on a stderr that may be lost, or not be there; ``quiet``: nothing is shown."""

    def __init__(self, *, quiet: bool = False, **options):
        stream = sys.stderr and _Lossy(sys.stderr)
        super().__init__(file=stream, disable=quiet or stream is None, **options)

    @staticmethod
    def status_printer(file):
        return tqdm.status_printer(_Lossy(file))  # of stderr itself it would flush what can be lost


def say(text: str) -> None:
    """A line on stdout, above the bars; lost where it cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(text, file=sys.stdout)
        if sys.stdout is not None:
            sys.stdout.flush()


def tell(text: str) -> None:
    """A line on stderr; lost where it cannot be written."""
    if sys.stderr is not None:
        print(text, file=_Lossy(sys.stderr), flush=True)


def let_go_of_lost() -> None:
    """A stream that cannot be written to any more is let go of; Python would end with an error for what is in it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


class Progress(Bar):
    """A bar of steps that also shows images per second; it goes away when it is closed.

    Args:
        title: what is being done.
        steps: how many steps there are.
        done: steps that were done before.
        quiet: nothing is shown.
    """

    def __init__(self, title: str, steps: int, *, done: int = 0, quiet: bool = False):
        self.images, self._of_stage, self._since = 0, 0.0, time.perf_counter()
        super().__init__(
            total=steps,
            initial=done,
            desc=title,
            leave=False,
            mininterval=_INTERVAL,
            bar_format=_FORMAT,
            quiet=quiet,
        )

    def add(self, images: int) -> None:
        """A step is done, in which so many images were computed."""
        self.images += images
        self.update()

    def next(self, title: str, images: int) -> None:
        """A stage is done, in which so many images were computed; that with the title begins. The speed that is shown
        is that of the last stage which computed any."""
        now = time.perf_counter()
        if images:
            self._of_stage = images / max(now - self._since, 1e-9)
        self._since = now
        self.set_description_str(title, refresh=False)
        self.update()
        self.refresh()

    @property
    def format_dict(self):
        values = super().format_dict
        speed = self._of_stage or (self.images / values["elapsed"] if values["elapsed"] else 0)
        return values | {"speed": f"{speed:,.0f} images/s" if speed else "? images/s"}


def watched(
    batches: Iterable[tuple[Tensor, Tensor]], title: str, steps: int, quiet: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches ``(x, labels)`` as they are, with a bar; a batch counts as done when the next one is asked for."""
    with Progress(title, steps, quiet=quiet) as bar:
        for x, y in batches:
            yield x, y
            bar.add(len(y))


def time_left(seconds: float) -> str:
    """``40 s``, ``5 min``, ``2 h 05 min`` or ``3 d 04 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24:02} h"
