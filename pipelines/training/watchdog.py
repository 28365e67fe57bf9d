"""Ends a worker whose step takes too long, so that Ray starts the group again, and says where each worker was."""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

_SECONDS_FOR_OTHERS = 5.0
"""Time for the other workers to say where they are: they fail when the first one ends."""
_SECONDS_MORE = 15.0
"""Time after which the process is ended without Python, which a library may keep from running."""
_NUM_FRAMES = 10
_STANDARD_ERROR = 2


class Watchdog:
    """Ends this process if `seconds` pass between two calls of `feed`, from the first one on. A context manager.

    The stacks of all threads go to standard error, which Ray keeps as a log; the last frames of the thread that trains
    also to the user.
    """

    def __init__(self, rank: int, seconds: float | None, say: Callable[[str], None]) -> None:
        """`say` shows a line to the user. `seconds` None: does nothing."""
        self._rank, self._seconds, self._say = rank, seconds, say
        self._fed: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._trains = threading.get_ident()

    def feed(self) -> None:
        """Says that a step has ended. The first step, which may compile, is not watched."""
        self._fed = time.monotonic()
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds + _SECONDS_MORE, exit=True, file=_STANDARD_ERROR)

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._end.wait(min(self._seconds / 10, 10.0)):
            if self._fed is not None and time.monotonic() - self._fed > self._seconds:
                self._report()
                if not self._end.wait(_SECONDS_FOR_OTHERS):
                    os._exit(1)

    def _report(self) -> None:
        faulthandler.dump_traceback(file=_STANDARD_ERROR)
        frames = traceback.extract_stack(sys._current_frames()[self._trains])[-_NUM_FRAMES:]
        calls = [f"{frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})" for frame in reversed(frames)]
        self._say(
            f"rank {self._rank}: a step takes longer than training.hang_timeout={self._seconds:g} s; it is in "
            + " < ".join(calls)
        )
