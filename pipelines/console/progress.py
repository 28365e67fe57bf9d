"""The progress line of a long task: the amount done, the rate and the time left."""

import sys
import threading
import time

_EVERY_SECONDS = 2.0  # on a terminal, where the line is rewritten
_EVERY_SECONDS_IN_A_LOG = 10.0


class ProgressLine:
    """A line on stderr, rewritten in place on a terminal. The last line has the total time in place of an ETA.

    As a context manager, it also updates the line while nothing is added, so that a reader sees that the work is alive.
    If there is no error, the context ends with the last line.
    """

    def __init__(
        self, what: str, total: int | None, unit: str, *, done: int = 0, every_seconds: float | None = None
    ) -> None:
        """
        Args:
            total: Number of units. None if unknown until the end; then nothing is printed if the first update never
                comes.
            done: Number of units that are done already. The rate excludes them.
            every_seconds: Seconds between updates. None: two on a terminal, ten in a log.
        """
        self._what, self._total, self._unit = what, total, unit
        self._rewritten = sys.stderr.isatty()
        self._every_seconds = every_seconds or (_EVERY_SECONDS if self._rewritten else _EVERY_SECONDS_IN_A_LOG)
        self._done, self._before, self._note, self._width = done, done, "", 0
        self._start = self._shown = time.perf_counter()
        self._lock, self._finished = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_showing, name="progress-line", daemon=True)

    def __enter__(self) -> "ProgressLine":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._lock:
            is_worth_it = self._total is not None or self._shown > self._start
            if kind is None and is_worth_it and not self._finished.is_set():
                self._show(last=True)
            elif self._rewritten and self._width and not self._finished.is_set():
                print(file=sys.stderr, flush=True)  # so that later output does not overwrite the line
            self._finished.set()
        self._thread.join()

    def add(self, number: int, note: str | None = None) -> None:
        """Add `number` finished units. `note`, if given, is shown from now on."""
        self.set(self._done + number, note)

    def set(self, done: int, note: str | None = None) -> None:
        """Set the total number of finished units to `done`."""
        with self._lock:
            self._done = done
            self._note = self._note if note is None else note
            if self._finished.is_set():
                return
            if self._total is not None and done >= self._total:
                self._show(last=True)
                self._finished.set()
            elif time.perf_counter() - self._shown >= self._every_seconds:
                self._show(last=False)

    def _keep_showing(self) -> None:
        while not self._finished.wait(self._every_seconds / 2):
            with self._lock:
                if not self._finished.is_set() and time.perf_counter() - self._shown >= self._every_seconds:
                    self._show(last=False)

    def _show(self, *, last: bool) -> None:
        self._shown = time.perf_counter()
        seconds = self._shown - self._start
        rate = (self._done - self._before) / max(seconds, 1e-9)
        if last:
            end = f"in {duration(seconds)}"
        elif self._total is None:
            end = f"after {duration(seconds)}"
        else:
            end = f"ETA {duration((self._total - self._done) / rate) if rate else 'unknown'}"
        done = f"{self._done:,}" if self._total is None else f"{self._done:,} of {self._total:,}"
        parts = [
            f"{self._what} {done} {self._unit}",
            f"{rate:,.1f}/s" if rate < 10 else f"{rate:,.0f}/s",
            *([self._note] if self._note else []),
            end,
        ]
        line = "  ".join(parts)
        padding = " " * (self._width - len(line)) if self._rewritten else ""
        self._width = len(line)
        print(line + padding, end="\n" if last or not self._rewritten else "\r", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
