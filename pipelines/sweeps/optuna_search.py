"""Trials proposed by Optuna's TPE sampler, near configurations that have scored well."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pipelines.sweeps.folder import Known
from pipelines.sweeps.plan import METRIC, Sweep, TrialSpec
from pipelines.sweeps.space import Choice, Space

_MOST_REFUSALS = 1000


def check_optuna() -> None:
    """Raise ValueError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError("searcher=optuna needs a package that is missing: pip install 'optuna>=5'") from None


class OptunaTrials:
    """Proposes configurations, each once with every seed. The score of a configuration is the mean over its seeds."""

    def __init__(self, sweep: Sweep, known: Mapping[str, Known]) -> None:
        from ray.tune.search.optuna import OptunaSearch

        # Every start needs another seed. Otherwise it would repeat the draws of the first start.
        seed = sweep.config.seed + len(known)
        self._sweep = sweep
        self._search = OptunaSearch(space=_distributions(sweep.space), metric=METRIC, mode="max", seed=seed)
        self._asked: dict[str, str] = {}
        """Optuna's id of each configuration that it has proposed since this start."""
        self._known = {each.spec.name for each in known.values()}
        self._waiting = [spec for each in known.values() for spec in self._seeds(each.spec)]
        """Trials of known configurations with seeds still to do."""
        self._scores: dict[str, list[float | None]] = defaultdict(list)

    def propose(self) -> TrialSpec | None:
        for _ in range(_MOST_REFUSALS):
            while self._waiting:
                spec = self._waiting.pop(0)
                if spec.name not in self._known:
                    self._known.add(spec.name)
                    return spec
            identifier = f"ask-{len(self._asked)}-{len(self._known)}"
            point: Any = self._search.suggest(identifier)
            spec = self._sweep.spec(_unescaped(point, self._sweep.space), 0)
            if self._sweep.refusal(spec) is not None or spec.name in self._known:
                self._search.on_trial_complete(identifier, error=True)
                continue
            self._asked[spec.configuration] = identifier
            self._waiting += self._seeds(spec)
        return None

    def learn(self, spec: TrialSpec, score: float | None) -> None:
        scores = self._scores[spec.configuration]
        scores.append(score)
        if len(scores) < len(self._sweep.seeds):
            return
        found = [one for one in scores if one is not None]
        mean = sum(found) / len(found) if found else None
        if (identifier := self._asked.get(spec.configuration)) is not None:
            self._search.on_trial_complete(identifier, None if mean is None else {METRIC: mean}, error=mean is None)
        elif mean is not None:  # proposed in an earlier start
            self._search.add_evaluated_point(_escaped(spec.point), mean)

    def _seeds(self, spec: TrialSpec) -> list[TrialSpec]:
        return [self._sweep.spec(spec.point, seed) for seed in self._sweep.seeds]


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        _name(axis.name): CategoricalDistribution(list(axis.options))
        if isinstance(axis, Choice)
        else FloatDistribution(axis.low, axis.high, log=axis.log)
        for axis in space.axes
    }


def _name(axis: str) -> str:
    """Return an axis name without slashes, which Ray takes for nesting. Field names have dots."""
    return axis.replace("/", " of ")


def _escaped(point: Mapping[str, Any]) -> dict[str, Any]:
    return {_name(name): value for name, value in point.items()}


def _unescaped(point: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return the point under the names of the axes, with numbers as they are recorded."""
    taken = {axis.name: point[_name(axis.name)] for axis in space.axes}
    return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in taken.items()}
