"""Measures the memory of a job: this process and all its descendants, including Ray's."""

import threading
import time
from types import TracebackType

import psutil


class PeakMemory:
    """Context manager that samples the resident memory of the process tree. Shared pages count once (PSS, on Linux)."""

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
            # A sample of a hundred processes takes a second. This limits it to 2 % of a core.
            if self._ended.wait(max(self._every_seconds, 50 * (time.perf_counter() - start))):
                return


def resident_mb() -> int:
    """Megabytes currently resident in this process and its descendants."""
    process = psutil.Process()
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            memory = member.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended, or belongs to another user
            continue
        total += getattr(memory, "pss", memory.rss)
    return total // 2**20
