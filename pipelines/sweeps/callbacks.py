"""Follows a sweep while Ray Tune runs it: records the progress and end of each trial, and prints a progress line."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback, Stopper

from pipelines.cluster.causes import root_cause
from pipelines.console.progress import duration
from pipelines.sweeps.folder import Known, SweepFolder, with_results
from pipelines.sweeps.plan import METRIC, TIME, Sweep, TrialSpec
from pipelines.sweeps.record import TrialRecord
from pipelines.sweeps.search import NotSnapshotted

_SHOW_EVERY_SECONDS = 30.0


class SweepBook:
    """All trials, in memory and in the folder. Used by Tune's thread and by the thread that settles trials."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        self._sweep, self._folder = sweep, folder
        self._known = folder.read_known()
        self._lock = threading.Lock()
        self._seconds_before, self._start = folder.read_seconds(), time.monotonic()
        for known in list(self._known.values()):
            # Failed trials are tried again, except those with a recorded failure: only that is permanent.
            if known.record.status == "failed" and folder.read_failure(known.spec) is None:
                record = dataclasses.replace(known.record, status="running", stop_reason=None)
                self._put(dataclasses.replace(known, record=record, settled=False))

    @property
    def known(self) -> dict[str, Known]:
        with self._lock:
            return dict(self._known)

    def begin(self, spec: TrialSpec) -> None:
        """Record a new trial before it starts."""
        self._put(Known(spec=spec, record=TrialRecord(name=spec.name, values=spec.values, seed=spec.seed)))

    def reached(self, spec: TrialSpec, step: int, score: float) -> None:
        known = self.known[spec.name]
        if known.record.scores.get(step) != score:
            record = dataclasses.replace(known.record, scores={**known.record.scores, step: score})
            self._put(dataclasses.replace(known, record=record))
        self._folder.write_seconds(self.seconds)

    def end(self, spec: TrialSpec, *, error: str | None) -> TrialRecord:
        """Record a trial that Tune has ended: finished, stopped at a rung, or failed."""
        known = with_results(self.known[spec.name], self._folder.run(spec))
        failure, last = self._folder.read_failure(spec) or error, self._folder.run(spec).latest_step()
        if failure is not None:
            status, reason = "failed", failure
        elif last >= self._sweep.num_steps and not known.record.scores:
            status, reason = "failed", "no rung could be evaluated"
        elif last >= self._sweep.num_steps and max(known.record.scores) >= last:
            status, reason = "finished", None
        else:
            status, reason = "stopped", self._why_stopped(known.record)
        values = self._folder.current(spec)[1].values
        record = dataclasses.replace(known.record, values=values, status=status, stop_reason=reason)
        self._put(dataclasses.replace(known, record=record))
        return record

    def settled(self, name: str, run_id: str | None) -> None:
        known = self.known[name]
        record = dataclasses.replace(known.record, run_id=run_id)
        self._put(dataclasses.replace(known, record=record, settled=True))

    def may_begin(self) -> bool:
        """Whether the budget allows another trial."""
        number = self._sweep.num_trials
        return not self.is_late() and (number is None or len(self.known) < number)

    def is_late(self) -> bool:
        """Whether the hours of the budget are used up."""
        return self.seconds >= (self._sweep.config.budget_seconds or float("inf"))

    @property
    def seconds(self) -> float:
        """Seconds the sweep has run, over all restarts."""
        return self._seconds_before + time.monotonic() - self._start

    def _put(self, known: Known) -> None:
        with self._lock:
            self._known[known.record.name] = known
            number = list(self._known).index(known.record.name)
        self._folder.write_known(known, number)

    def _why_stopped(self, record: TrialRecord) -> str:
        step = max(record.scores, default=0)
        if self.is_late():
            return f"at step {step}: the budget of {self._sweep.config.budget} was used up"
        share = self._sweep.config.reduction_factor
        return (
            f"at step {step}: {record.scores.get(step, 0.0):.2f} % is not among the best 1/{share} of this rung (asha)"
        )


class Watch(NotSnapshotted, Callback):
    """Tune's callback: records trials and prints progress."""

    def __init__(self, sweep: Sweep, book: SweepBook, say: Callable[[str], None]) -> None:
        self._sweep, self._book, self._say = sweep, book, say
        self._start, self._shown = time.monotonic(), float("-inf")
        self._steps_before = self._num_steps_done()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._show(trials)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if METRIC in result:
            self._book.reached(self._spec(trial), result[TIME], result[METRIC])
            self._show(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trials, self._book.end(self._spec(trial), error=None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.status == "ERROR":  # otherwise Tune tries it again
            failure = trial.get_error()
            text = "its process died" if failure is None else root_cause(failure).line
            self._ended(trials, self._book.end(self._spec(trial), error=text))

    def _spec(self, trial: Any) -> TrialSpec:
        return self._book.known[_name(trial)].spec

    def _ended(self, trials: list[Any], record: TrialRecord) -> None:
        score = "no mIoU" if record.score is None else f"mIoU {record.score:.2f} %"
        reason = "" if record.stop_reason is None else f" {record.stop_reason}"
        self._say(f"{record.name} {record.status}: {score}{reason}  ({shown(record)})")
        self._show(trials, always=True)

    def _num_steps_done(self) -> int:
        return sum(max(known.record.scores, default=0) for known in self._book.known.values())

    def _show(self, trials: list[Any], *, always: bool = False) -> None:
        now = time.monotonic()
        if now - self._shown < _SHOW_EVERY_SECONDS and not always:
            return
        self._shown = now
        records = [known.record for known in self._book.known.values()]
        over = sum(record.status != "running" for record in records)
        over_by_name = {record.name for record in records if record.status != "running"}
        running = sum(trial.status == "RUNNING" and _name(trial) not in over_by_name for trial in trials)
        total = self._sweep.num_trials
        parts = [
            f"{self._sweep.name}: {over} of {total or 'any number of'} trials done, {running} running",
            *([f"best {text}"] if (text := _best(records)) else []),
        ]
        steps = self._num_steps_done()
        if total is not None and steps > self._steps_before:
            saved = sum(
                self._sweep.num_steps - max(r.scores, default=0) for r in records if r.status in ("stopped", "failed")
            )
            left = total * self._sweep.num_steps - saved - steps
            parts.append(f"ETA {duration(left * (now - self._start) / (steps - self._steps_before))}")
        self._say("  ".join(parts))


def _name(trial: Any) -> str:
    return str(trial)  # the name Tune created it with: pbt may have given it another trial's config since


class Ends(NotSnapshotted, Stopper):
    """Ends every trial at its next rung once the budget's hours are used up. With pbt, also ends each trial at its last
    rung, where it could only become a copy of a better one."""

    def __init__(self, sweep: Sweep, book: SweepBook) -> None:
        self._last_rung = sweep.num_steps if sweep.config.scheduler == "pbt" else float("inf")
        self._book = book

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._book.is_late() or result.get(TIME, 0) >= self._last_rung

    def stop_all(self) -> bool:
        """Never stop all at once: each trial reaches its next rung first."""
        return False


def shown(record: TrialRecord) -> str:
    """Return a trial's values and seed as a short text."""
    values = "  ".join(f"{name.rpartition('.')[2]} {value}" for name, value in record.values.items())
    return f"{values}  seed {record.seed}"


def _best(records: list[TrialRecord]) -> str | None:
    scored = [record for record in records if record.score is not None]
    if not scored:
        return None
    best = max(scored, key=lambda record: record.score or 0.0)
    return f"mIoU {best.score:.2f} % ({shown(best)})"
