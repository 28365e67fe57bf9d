"""Ctrl-C and SIGTERM during work that can end early without loss."""

import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

Result = TypeVar("Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LONGEST_WAIT = 0.2
"""Seconds."""


def run_stoppable(work: Callable[[], Result], stop: Callable[[], None]) -> tuple[Result, int | None]:
    """Call `work` in another thread, and return its result with the number of the signal that stopped it, if one did.

    The first Ctrl-C or SIGTERM calls `stop`, after which `work` should return soon. The second raises KeyboardInterrupt
    or SystemExit at once. Outside the main thread, which alone receives signals, `work` is just called.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(), None
    received: list[int] = []
    outcome: Future[Result] = Future()

    def note(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        print("stopping after this step, with a checkpoint; once more stops at once", file=sys.stderr, flush=True)
        stop()

    def call() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        threading.Thread(target=call, name="stoppable-work", daemon=True).start()
        # In short waits: Python acts on a signal that comes just before a wait only when the wait has ended.
        while not wait([outcome], timeout=_LONGEST_WAIT).done:
            pass
        return outcome.result(), next(iter(received), None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
