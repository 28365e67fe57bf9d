"""The progress line of long work: how much is done, how fast, how long it will take."""

import sys
import time

_EVERY_SECONDS = 2.0


class ProgressLine:
    """One line on stderr, rewritten on a terminal; every two seconds, and at the end."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._start = self._shown = time.perf_counter()

    def add(self, number: int, note: str = "") -> None:
        """`number` more are done; `note` is shown with them."""
        self._done += number
        now = time.perf_counter()
        if now - self._shown < _EVERY_SECONDS and self._done < self._total:
            return
        self._shown = now
        rate = self._done / max(now - self._start, 1e-9)
        parts = [
            f"{self._what} {self._done:,} of {self._total:,} {self._unit}",
            f"{rate:,.1f}/s" if rate < 10 else f"{rate:,.0f}/s",
            *([note] if note else []),
            f"ETA {duration((self._total - self._done) / max(rate, 1e-9))} ",
        ]
        end = "\n" if self._done >= self._total or not sys.stderr.isatty() else "\r"
        print("  ".join(parts), end=end, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
