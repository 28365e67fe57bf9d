"""How much memory a job takes: this process and all its descendants, Ray's included."""

import threading
import time
from types import TracebackType

import psutil


class PeakMemory:
    """Context that samples the resident memory of the process tree. Pages that processes share count once (PSS, on
    Linux).
    """

    def __init__(self, every_seconds: float = 2.0) -> None:
        self.peak_mb = 0
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            start = time.perf_counter()
            self.peak_mb = max(self.peak_mb, resident_mb())
            # Of a hundred processes it takes a second: at most 2 % of a core.
            if self._ended.wait(max(self._every_seconds, 50 * (time.perf_counter() - start))):
                return


def resident_mb() -> int:
    """Megabytes resident in this process and its descendants now."""
    process = psutil.Process()
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            memory = member.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended, or belongs to somebody else
            continue
        total += getattr(memory, "pss", memory.rss)
    return total // 2**20
