"""Stops a run on SIGINT or SIGTERM."""

import os
import signal
import threading
import time

_SAME = 2.0  # seconds; a batch system signals torchrun and its processes, and torchrun signals them again


class Interrupted(Exception):
    """Raised after SIGINT or SIGTERM: the run was saved and can be resumed."""


class Signals:
    """While this context is active, SIGINT and SIGTERM are recorded for the training loop, which saves and stops. A
    further signal more than two seconds after the first stops the process at once.

    Attributes:
        received: number of the signal, or None.
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
        """The name of the signal that was received."""
        return signal.Signals(self.received).name if self.received else "a signal to another process"

    def _handle(self, number, frame):
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _SAME:
            signal.signal(number, self._old[number])
            os.kill(os.getpid(), number)
