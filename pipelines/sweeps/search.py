"""What Ray Tune asks: which trial comes next, and which must stop. Both remember what was done before a restart."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.sweeps.folder import Known
from pipelines.sweeps.plan import METRIC, TIME, Sweep, TrialSpec


class Proposer(Protocol):
    """Chooses trials that nobody has tried."""

    def propose(self) -> TrialSpec | None:
        """The next trial; None: there is none, for now or for ever."""
        ...

    def learn(self, spec: TrialSpec, score: float | None) -> None:
        """How a trial ended; None: it has no score."""
        ...


class ListedTrials:
    """Proposes trials in a given order: a grid, or draws at random."""

    def __init__(self, specs: Iterable[TrialSpec], known: Mapping[str, Known]) -> None:
        self._specs = (spec for spec in specs if spec.name not in known)

    def propose(self) -> TrialSpec | None:
        return next(self._specs, None)

    def learn(self, spec: TrialSpec, score: float | None) -> None:
        """Does not matter to it."""


def proposer_of(sweep: Sweep, known: Mapping[str, Known]) -> Proposer:
    if sweep.searcher == "grid":
        return ListedTrials(sweep.grid(), known)
    if sweep.searcher == "random":
        return ListedTrials(sweep.draws(), known)
    from pipelines.sweeps.optuna_search import OptunaTrials  # an optional dependency

    return OptunaTrials(sweep, known)


class Unkept:
    """Something that is not in the copy that Tune keeps of all it is given: a restart goes by the sweep's folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TrialSearcher(Unkept, Searcher):
    """Hands to Tune first the trials that were begun and not ended, then new ones, each on record before it starts."""

    def __init__(
        self,
        pending: Sequence[TrialSpec],
        proposer: Proposer,
        begin: Callable[[TrialSpec], None],
        may_begin: Callable[[], bool],
        current: Callable[[TrialSpec], TrialSpec],
    ) -> None:
        """`begin` records a new trial; `may_begin` says whether the budget has room for another; `current` what a trial
        trains by now."""
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
        """Every trial at once, for pbt: Tune lets it have no searcher."""
        found: list[dict[str, Any]] = []
        while (suggested := self.suggest(str(len(found)))) != Searcher.FINISHED:
            found.append(suggested["trial"])
        return found

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        spec = self._running.pop(trial_id)
        self._proposer.learn(spec, None if error or result is None else result.get(METRIC))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder holds it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder holds it."""


@dataclasses.dataclass(frozen=True)
class _Past:
    """As much of a trial of Tune as a scheduler looks at, for one that ended before a restart."""

    trial_id: str


def scheduler_of(sweep: Sweep, over: Sequence[Known]) -> TrialScheduler:
    """The scheduler, to which the rungs of trials that are over are told once more: it stops by them."""
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
        stop_last_trials=False,  # a trial ends by itself at its last step, and closes what it has opened
    )
    for known in over:
        past: Any = _Past(known.record.name)
        controller: Any = None
        scheduler.on_trial_add(controller, past)
        for step, score in sorted(known.record.scores.items()):
            scheduler.on_trial_result(controller, past, {TIME: step, METRIC: score})
    return scheduler
