"""Prints a line of progress when one step of a long task takes too long without output."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

SILENCE_SECONDS = 15.0
"""Number of seconds without a line after which one is due."""
_PATIENCE = 1.25


class Heartbeat:
    """Forwards lines, and adds one of its own after a silence. A context manager: its exit ends the thread."""

    def __init__(
        self, say: Callable[[str], None], describe: Callable[[], str], silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        """`say` shows a line. `describe` returns a line about the current work and is called in another thread."""
        self._say, self._describe, self._silence = say, describe, silence_seconds
        self._last = time.monotonic()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    @property
    def is_due(self) -> bool:
        """Whether a line is due."""
        return time.monotonic() - self._last >= self._silence

    def say(self, line: str) -> None:
        """Shows a line."""
        with self._lock:
            self._say(line)
            self._last = time.monotonic()

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self._silence / 20):
            # The line of a step that is about to end says more than this one, so give it some time.
            if time.monotonic() - self._last >= _PATIENCE * self._silence:
                self.say(self._describe())
