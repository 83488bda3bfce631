"""Progress bars on stderr and lines on stdout, with speed in images per second. Output that cannot be written (the
terminal is closed, the reader is gone, the disk of a log is full) does not abort a run."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator

from torch import Tensor
from tqdm import tqdm

_INTERVAL = 0.5  # seconds between two updates of a bar
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}, {speed}{postfix}]"


class _Lossy:
    """A stream that drops output that it cannot write."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def __eq__(self, other):  # tqdm compares its stream with stderr
        return self._stream is other or self is other

    __hash__ = object.__hash__


class Bar(tqdm):
    """A ``tqdm`` bar on stderr, which may be missing or broken. ``quiet=True`` or the environment variable
    ``TQDM_DISABLE`` shows nothing."""

    def __init__(self, *, quiet: bool = False, **options):
        stream = sys.stderr and _Lossy(sys.stderr)
        super().__init__(
            file=stream, disable=quiet or stream is None or bool(os.environ.get("TQDM_DISABLE")), **options
        )

    @staticmethod
    def status_printer(file):
        return tqdm.status_printer(_Lossy(file))  # tqdm would otherwise flush stderr itself, which can fail


def say(text: str) -> None:
    """Prints a line on stdout above the bars; drops it if it cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(text, file=sys.stdout)
        if sys.stdout is not None:
            sys.stdout.flush()


def tell(text: str) -> None:
    """Prints a line on stderr; drops it if it cannot be written."""
    if sys.stderr is not None:
        print(text, file=_Lossy(sys.stderr), flush=True)


def let_go_of_lost() -> None:
    """Replaces an output stream that cannot be written to by /dev/null; otherwise Python would exit with an error for
    its buffered text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


class Progress(Bar):
    """A bar of steps that also shows images per second. It disappears when it is closed.

    Args:
        title: text before the bar.
        steps: total number of steps.
        done: number of steps done earlier (default 0).
        quiet: show nothing (default False).
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
        """Counts one step in which ``images`` images were processed."""
        self.images += images
        self.update()

    def next(self, title: str, images: int) -> None:
        """Ends a stage in which ``images`` images were processed, and starts the stage ``title``. The bar shows the
        speed of the last stage that processed any."""
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
    """Yields the batches ``(x, labels)`` unchanged and shows a bar. A batch counts as done when the next one is
    requested."""
    with Progress(title, steps, quiet=quiet) as bar:
        for x, y in batches:
            yield x, y
            bar.add(len(y))


def time_left(seconds: float) -> str:
    """Formats seconds as ``40 s``, ``5 min``, ``2 h 05 min`` or ``3 d 04 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24:02} h"
