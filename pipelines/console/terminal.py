"""Standard output and error of a command. Its work does not depend on who reads them.

    keep_going()                  once, before anything is printed
    with without_ray_lines():     hide what Ray's C++ parts print on standard error

If the reader goes away (`| head -1`, a closed terminal) or the disk is full, the output ends but the work goes on.
"""

import errno
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, TextIO

_RAY_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] .*\.cc:\d+:")
"""Start of a line of Ray's C++ parts, like `[2026-11-26 22:36:58,116 E 11169 11169] core_worker.cc:2465: …`, except
fatal ones. Ray also writes the lines to its log files."""


class _Output(io.FileIO):
    """A file descriptor to which writing never fails. After the first failure, all output is discarded."""

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
"""Standard output and error, once `keep_going` has replaced them."""


def keep_going() -> None:
    """Let output fail without an effect on the work, and escape characters that the terminal cannot show.

    If something else has replaced the output, as a test does, leave it unchanged.
    """
    sys.excepthook = _show_exception
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell; the next opened file would take its descriptor
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__ and not _outputs:
        sys.stdout.flush()
        sys.stderr.flush()
        # Python's own lines bypass descriptor 2, which `without_ray_lines` reads.
        _outputs[:] = [_Output(1, "wb", closefd=False), _Output(os.dup(2), "wb")]
        sys.stdout, sys.stderr = (_text(*pair) for pair in zip(_outputs, (sys.stdout, sys.stderr), strict=True))


def failure_of_output() -> str | None:
    """Return why output was lost. None if it was not, or if its reader went away, which is not an error."""
    for output, name in zip(_outputs, ("standard output", "standard error"), strict=False):
        if output.failure is not None and output.failure.errno != errno.EPIPE:
            return f"{name}: {output.failure.strerror}"
    return None


@contextmanager
def without_ray_lines() -> Iterator[None]:
    """Hide what Ray's C++ parts print on standard error within the context. Pass on lines of other libraries."""
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
        thread.join(timeout=1)  # a process started in the context may live on and keep the pipe open


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
    """Report Ctrl-C in one line, because it is not an error. Python then ends itself by SIGINT, so that shells know."""
    if issubclass(kind, KeyboardInterrupt) and not os.environ.get("GROUPVIT_TRACEBACK"):
        print("groupvit: stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
