"""A line now and then while one step of long work takes longer than people wait in silence."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

SILENCE_SECONDS = 15.0
"""Time without a line after which one is due."""
_PATIENCE = 1.25


class Heartbeat:
    """Passes lines on, and adds one of its own when none came for a while. A context: its thread ends with it."""

    def __init__(
        self, say: Callable[[str], None], describe: Callable[[], str], silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        """`say` shows a line; `describe` makes the line that says what the work is at, in another thread."""
        self._say, self._describe, self._silence = say, describe, silence_seconds
        self._last = time.monotonic()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    @property
    def is_due(self) -> bool:
        """Whether a line would be welcome."""
        return time.monotonic() - self._last >= self._silence

    def say(self, line: str) -> None:
        """Show a line."""
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
            # A step that ends about now says more than this line, so it is given some time.
            if time.monotonic() - self._last >= _PATIENCE * self._silence:
                self.say(self._describe())
