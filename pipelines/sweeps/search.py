"""Searcher and scheduler for Ray Tune: which trial starts next, and which must stop. Both know trials of earlier
starts."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.sweeps.folder import Known
from pipelines.sweeps.plan import METRIC, TIME, Sweep, TrialSpec


class Proposer(Protocol):
    """Chooses trials that have not been tried."""

    def propose(self) -> TrialSpec | None:
        """Return the next trial; None if there is none, for now or for good."""
        ...

    def learn(self, spec: TrialSpec, score: float | None) -> None:
        """Take the score of a trial that ended; None if it has no score."""
        ...


class ListedTrials:
    """Proposes trials in a given order: a grid, or random draws."""

    def __init__(self, specs: Iterable[TrialSpec], known: Mapping[str, Known]) -> None:
        self._specs = (spec for spec in specs if spec.name not in known)

    def propose(self) -> TrialSpec | None:
        return next(self._specs, None)

    def learn(self, spec: TrialSpec, score: float | None) -> None:
        """Does nothing: scores do not change the order."""


def proposer_of(sweep: Sweep, known: Mapping[str, Known]) -> Proposer:
    if sweep.searcher == "grid":
        return ListedTrials(sweep.grid(), known)
    if sweep.searcher == "random":
        return ListedTrials(sweep.draws(), known)
    from pipelines.sweeps.optuna_search import OptunaTrials  # an optional dependency

    return OptunaTrials(sweep, known)


class NotSnapshotted:
    """Excludes its state from Tune's snapshots. A restart reads the sweep's folder instead."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TrialSearcher(NotSnapshotted, Searcher):
    """Gives Tune first the unfinished trials, then new ones. Each new trial is recorded before it starts."""

    def __init__(
        self,
        pending: Sequence[TrialSpec],
        proposer: Proposer,
        begin: Callable[[TrialSpec], None],
        may_begin: Callable[[], bool],
        current: Callable[[TrialSpec], TrialSpec],
    ) -> None:
        """
        Args:
            begin: Records a new trial.
            may_begin: Returns whether the budget allows another trial.
            current: Returns the spec that a trial trains now.
        """
        self._current = current
        super().__init__(metric=METRIC, mode="max")
        self._pending, self._proposer, self._begin, self._may_begin = list(pending), proposer, begin, may_begin
        self._running: dict[str, TrialSpec] = {}

    def suggest(self, trial_id: str) -> Any:
        if self._pending:
            spec = self._pending.pop(0)
        elif not self._may_begin():
            return Searcher.FINISHED
        else:
            spec = self._proposer.propose()
            if spec is None:
                return Searcher.FINISHED
            self._begin(spec)
        self._running[trial_id] = spec
        return {"trial": {"name": spec.name, "point": dict(self._current(spec).point)}}

    def suggest_all(self) -> list[dict[str, Any]]:
        """Return all trials at once, for pbt: Tune allows no searcher with it."""
        found: list[dict[str, Any]] = []
        while (suggested := self.suggest(str(len(found)))) != Searcher.FINISHED:
            found.append(suggested["trial"])
        return found

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        spec = self._running.pop(trial_id)
        self._proposer.learn(spec, None if error or result is None else result.get(METRIC))

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the sweep's folder holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the sweep's folder holds the state."""


@dataclasses.dataclass(frozen=True)
class _Past:
    """A trial that ended before a restart, with the only attribute of Tune's trials that a scheduler reads."""

    trial_id: str


def scheduler_of(sweep: Sweep, over: Sequence[Known]) -> TrialScheduler:
    """Return the scheduler. It first gets the rungs of trials that have ended before, because it decides by them."""
    base = sweep.space.base
    if sweep.config.scheduler == "none":
        return FIFOScheduler()
    rung = base.evaluation.every_n_steps
    assert rung is not None
    if sweep.config.scheduler == "pbt":
        from pipelines.sweeps.lineage import population_scheduler

        return population_scheduler(sweep)
    scheduler = ASHAScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode="max",
        max_t=sweep.num_steps,
        grace_period=min(rung, sweep.num_steps),
        reduction_factor=sweep.config.reduction_factor,
        stop_last_trials=False,  # a trial ends by itself at its last step, and closes its resources
    )
    for known in over:
        past: Any = _Past(known.record.name)
        controller: Any = None
        scheduler.on_trial_add(controller, past)
        for step, score in sorted(known.record.scores.items()):
            scheduler.on_trial_result(controller, past, {TIME: step, METRIC: score})
    return scheduler
