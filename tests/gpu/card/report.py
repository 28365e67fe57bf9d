"""Rows of results: printed as they come, written after each, one table last.

A section that takes too long is interrupted, and the next one begins. So is a row that fails: the section goes on.
"""

import contextlib
import dataclasses
import json
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

Result = Literal["measured", "ok", "failed", "skipped"]
Value = float | str | None
WHOLE = "all of it"
"""Name of the row of a section that ended early."""


class SkippedError(Exception):
    """Something cannot be measured here. The message says why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One result."""

    section: str
    name: str
    result: Result
    values: Mapping[str, Value]
    why: str = ""
    """Why it was skipped or failed."""

    def text(self) -> str:
        """Values and reason on one line."""
        shown = [f"{key} {_text(value)}" for key, value in self.values.items() if value is not None]
        return ", ".join([*shown, *([self.why] if self.why else [])])


class Report:
    """Rows of one part, in FOLDER/partN.json."""

    def __init__(self, folder: Path, part: int, about: Mapping[str, Any], *, limit_seconds: float) -> None:
        """`limit_seconds`: of the whole part. Sections that would begin later are skipped."""
        self.path = folder / f"part{part}.json"
        self._part, self._about = part, about
        self._started, self._limit = time.monotonic(), limit_seconds
        self._section, self._section_end = "", self._started + limit_seconds
        self.rows: list[Row] = []
        self._seconds: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._write(complete=False)

    @property
    def seconds_left(self) -> float:
        """Seconds until the section or the part is interrupted."""
        return self._section_end - time.monotonic()

    def section(self, name: str, run: Callable[[], None], *, limit_seconds: float) -> None:
        """Runs a section. What it raises becomes a row."""
        now = time.monotonic()
        part_end = self._started + self._limit
        self._section, self._section_end = name, min(now + limit_seconds, part_end)
        print(f"\n== {name}: at most {self._section_end - now:.0f} s", flush=True)
        if self._section_end - now < 1:
            self.skip(WHOLE, f"no time left of {self._limit:.0f} s")
        else:
            with _interrupted_after(self._section_end - now):
                self.row(WHOLE, run)
        self._seconds[name] = round(time.monotonic() - now, 1)
        self._write(complete=False)

    def row(self, name: str, run: Callable[[], None], *, seconds: float = 0.0) -> None:
        """Calls `run`, which adds rows. What it raises becomes the row `name`, and the section goes on.

        It runs only if at least `seconds` are left.
        """
        if seconds > self.seconds_left:
            self.skip(name, f"no time left: it takes about {seconds:.0f} s")
            return
        try:
            run()
        except SkippedError as reason:
            self.skip(name, str(reason))
        except ImportError as error:
            self.skip(name, f"needs the package {error.name}" if error.name else str(error))
        except torch.OutOfMemoryError:
            self.skip(name, "out of memory")
        except _TooLongError as error:
            self._add(Row(self._section, name, "failed", {}, str(error)))
            if name != WHOLE:
                raise  # to the section, which ends
        except Exception as error:
            traceback.print_exc()
            self._add(Row(self._section, name, "failed", {}, f"{type(error).__name__}: {_line(str(error))}"))

    def measured(self, name: str, values: Mapping[str, Value]) -> None:
        self._add(Row(self._section, name, "measured", values))

    def check(self, name: str, passed: bool, values: Mapping[str, Value], why: str = "") -> None:
        """`why`: what was expected, shown if it did not pass."""
        self._add(Row(self._section, name, "ok" if passed else "failed", values, "" if passed else why))

    def at_most(self, name: str, error: float, bound: float, values: Mapping[str, Value] | None = None) -> None:
        """Checks an error against its bound."""
        found = {"error": error, "bound": bound, **(values or {})}
        self.check(name, error <= bound, found, "the error is above its bound")

    def skip(self, name: str, why: str) -> None:
        self._add(Row(self._section, name, "skipped", {}, f"not run: {why}"))

    def finish(self) -> int:
        """Prints the table. Returns the exit code: 1 if a row failed, else 0."""
        self._write(complete=True)
        print(f"\nPart {self._part} on {self._about['card']}, torch {self._about['torch']}")
        names = [f"{row.section}: {row.name}" for row in self.rows]
        width = max(map(len, names), default=0)
        for row, name in zip(self.rows, names, strict=True):
            print(f"{row.result:8}  {name:{width}}  {row.text()}".rstrip())
        counts = Counter(row.result for row in self.rows)
        told = ", ".join(f"{counts[result]} {result}" for result in ("ok", "measured", "failed", "skipped"))
        print(f"part {self._part}: {told}; {time.monotonic() - self._started:.0f} s; {self.path}", flush=True)
        return 1 if counts["failed"] else 0

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.result:8}  {row.name}: {row.text()}", flush=True)
        self._write(complete=False)

    def _write(self, *, complete: bool) -> None:
        content = {
            "part": self._part,
            "about": self._about,
            "complete": complete,
            "seconds": round(time.monotonic() - self._started, 1),
            "seconds_of_sections": self._seconds,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }
        written = self.path.with_suffix(".tmp")
        written.write_text(json.dumps(content, indent=1) + "\n")
        written.replace(self.path)  # a run that is killed leaves what it had


class _TooLongError(BaseException):
    """Not an Exception, so that no code under test handles it."""


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise _TooLongError(f"interrupted after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _text(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _line(text: str, limit: int = 300) -> str:
    return " ".join(text.split())[:limit]
