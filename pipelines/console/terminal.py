"""Standard output and error of a command, so that its work does not depend on who reads them.

    keep_going()                  once, before anything is printed
    with without_ray_lines():     what Ray's C++ parts print on standard error is left out

A reader that goes away (`| head -1`, a closed terminal) or a full disk ends the output, not the work.
"""

import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, TextIO

_RAY_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] .*\.cc:\d+:")
"""How a line of Ray's C++ parts begins, like `[2026-11-26 22:36:58,116 E 11169 11169] core_worker.cc:2465: …`, except
fatal ones. Ray also writes it to its log files."""


class _Output(io.FileIO):
    """A file descriptor to which writing never fails: after the first failure, what is written goes nowhere."""

    failure: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content) or 0
        except OSError as error:
            self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


_outputs: list[_Output] = []
"""Standard output and error, once they are kept."""


def keep_going() -> None:
    """Let output fail without an effect on the work, and show characters that the terminal does not have as escapes.

    Output that something else has replaced, as a test does, is left as it is.
    """
    sys.excepthook = _show_exception
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell; the next file that is opened would take its place
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__ and not _outputs:
        sys.stdout.flush()
        sys.stderr.flush()
        # Python's own lines do not go through descriptor 2, which `without_ray_lines` reads.
        _outputs[:] = [_Output(1, "wb", closefd=False), _Output(os.dup(2), "wb")]
        sys.stdout, sys.stderr = (_text(*pair) for pair in zip(_outputs, (sys.stdout, sys.stderr), strict=True))


def failure_of_output() -> str | None:
    """Why output was lost; None if it was not, or if its reader went away, which is no fault."""
    for output, name in zip(_outputs, ("standard output", "standard error"), strict=False):
        if output.failure is not None and output.failure.errno != errno.EPIPE:
            return f"{name}: {output.failure.strerror}"
    return None


@contextmanager
def without_ray_lines() -> Iterator[None]:
    """Leaves out, for the time of the context, what Ray's C++ parts print on standard error. Lines of other libraries
    are passed on."""
    if not _outputs:
        yield
        return
    shown = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    thread = threading.Thread(target=_pass_on, args=(open(read, "rb"), shown), name="ray-lines", daemon=True)  # noqa: SIM115
    thread.start()
    try:
        yield
    finally:
        os.dup2(shown, 2)
        thread.join(timeout=1)  # a process that was started in between may live on, and keep the pipe open


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Leaves Ctrl-C what it is where a library handles it on its own: a KeyboardInterrupt, in the context and later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:  # Ray Train, once it has stopped the workers
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _pass_on(lines: BinaryIO, shown: int) -> None:
    with lines:
        for line in lines:
            if not _RAY_LINE.match(line):
                try:
                    os.write(shown, line)
                except OSError:
                    return
    os.close(shown)


def _text(output: _Output, before: TextIO) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=before.encoding,
        errors="backslashreplace",
        line_buffering=getattr(before, "line_buffering", False),
    )


def _show_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Ctrl-C is no fault of the program: one line. After it, Python ends itself by SIGINT, so that shells know."""
    if issubclass(kind, KeyboardInterrupt) and not os.environ.get("GROUPVIT_TRACEBACK"):
        print("groupvit: stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
