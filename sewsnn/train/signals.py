"""Stopping a run from outside."""

import os
import signal
import threading
import time

_SAME = 2.0  # seconds: a batch system tells torchrun and its processes, and torchrun tells them again


class Interrupted(Exception):
    """SIGINT or SIGTERM: the run was saved and can be resumed."""


class Signals:
    """While active, SIGINT and SIGTERM are remembered for the loop, which saves and stops; another one, more than two
    seconds after the first, stops at once.

    Attributes:
        received: its number, or None.
    """

    def __init__(self):
        self.received: int | None = None
        self._old: dict[int, object] = {}
        self._since = 0.0

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """What was received."""
        return signal.Signals(self.received).name if self.received else "a signal to another process"

    def _handle(self, number, frame):
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _SAME:
            signal.signal(number, self._old[number])
            os.kill(os.getpid(), number)
