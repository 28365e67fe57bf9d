"""Results of a sweep as numbers: configurations, their means over seeds, and conclusions."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.comparison.significance import ALPHA, holm, shown, welch_p_value
from pipelines.sweeps.record import TrialRecord
from pipelines.sweeps.report.importance import Importance, least_scores, parameter_importance

STATUSES = ("finished", "running", "stopped", "failed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """Trials with equal values."""

    values: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    """Sorted by seed."""
    p_value: float | None = None
    """For having the same mean as the best configuration (Welch's t-test, Holm-corrected); None if unknown."""

    @property
    def scores(self) -> dict[int, float]:
        """Final mIoU in percent of the finished trials, by seed."""
        return {trial.seed: score for trial in self.trials if (score := final_score(trial)) is not None}

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None before a trial has finished."""
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None with fewer than two."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def reached(self) -> tuple[int, float]:
        """Latest rung of its trials, and the highest score there; (-1, 0) before the first."""
        pairs = [(max(trial.scores), score) for trial in self.trials if (score := last_score(trial)) is not None]
        return max(pairs, default=(-1, 0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepReport:
    """All results of a sweep, ready to be shown."""

    trials: tuple[TrialRecord, ...]
    configurations: tuple[Configuration, ...]
    """Sorted by mean, highest first. Those without a finished trial come last, sorted by their progress."""
    varied: tuple[str, ...]
    """Flat dotted names of the parameters with more than one value."""
    best: TrialRecord | None
    """Finished trial with the highest score. While none has finished, the trial with the highest score."""
    importance: Importance
    seed_share: float | None
    """Share of the variance of final scores that lies between seeds of one configuration; None if unknown."""

    def count(self, status: str) -> int:
        return sum(trial.status == status for trial in self.trials)

    def label(self, configuration: Configuration) -> str:
        """Return the values that distinguish a configuration, like `assignment=hard, depths=6-3-3`; with many, without
        names."""
        names = short_names(self.varied)
        values = {names[name]: text(configuration.values.get(name), digits=3) for name in self.varied}
        if self.has_short_labels:
            return ", ".join(values.values())
        return ", ".join(f"{name}={value}" for name, value in values.items()) or "the one configuration"

    @property
    def has_short_labels(self) -> bool:
        """Whether labels leave out the names of the parameters, which must then be shown once."""
        return len(self.varied) > 3

    def metrics(self) -> dict[str, float]:
        """Return metrics for tracking, by flat names. mIoU in percent, shares from 0 to 1."""
        values = {"num_trials": float(len(self.trials)), "num_configurations": float(len(self.configurations))}
        values |= {f"num_{status}": float(self.count(status)) for status in ("finished", "stopped", "failed")}
        values |= {f"importance/{name}": share for name, share in self.importance.shares.items()}
        first = self.configurations[0] if self.configurations else None
        named = {
            "best_miou": self.best and last_score(self.best),
            "best_configuration_miou": first and first.mean,
            "best_configuration_deviation": first and first.deviation,
            "seed_share": self.seed_share,
        }
        values |= {name: value for name, value in named.items() if value is not None}
        return {name: round(value, 4) for name, value in values.items()}

    def summary(self) -> dict[str, Any]:
        """Return the content of leaderboard.json, JSON-safe."""
        return {
            "metrics": self.metrics(),
            "best_trial": self.best and self.best.name,
            "verdict": self.verdict(),
            "varied": list(self.varied),
            "importance": dict(self.importance.shares),
            "importance_note": self.importance.note,
            "configurations": [
                {
                    "values": jsonable(each.values),
                    "mean": each.mean,
                    "deviation": each.deviation,
                    "num_finished": len(each.scores),
                    "scores": {str(seed): score for seed, score in each.scores.items()},
                    "p_value": each.p_value,
                    "trials": [trial.name for trial in each.trials],
                }
                for each in self.configurations
            ],
            "trials": [_trial_summary(trial) for trial in self.trials],
        }

    def verdict(self) -> str:
        """Return a sentence: whether the best configuration could be the best by chance."""
        ranked = [each for each in self.configurations if each.mean is not None]
        if not ranked:
            return "no trial has finished yet"
        if len(ranked) == 1:
            return "one configuration has finished: there is nothing to compare it with"
        told = [each for each in ranked[1:] if each.p_value is not None]
        if not told:
            return "which configuration is best cannot be told: that takes several seeds of each"
        chance = [each for each in told if each.p_value is not None and each.p_value >= ALPHA]
        missing = len(ranked) - 1 - len(told)
        untold = f"; {missing} more have too few seeds to be told" if missing else ""
        least = min(each.p_value for each in told if each.p_value is not None)
        if len(chance) == len(told):
            found = f"may be chance against each of the {len(told)} others with seeds ({shown(least)} or more)"
        elif chance:
            found = f"may be chance against {len(chance)} of the {len(told)} others with seeds"
        else:
            found = f"is more than chance against each of the {len(told)} others with seeds"
        return f"the lead of the best configuration {found}{untold}; by Welch's t-test over seeds, Holm-corrected"


def summarise(trials: Sequence[TrialRecord]) -> SweepReport:
    """Return the report of a sweep's trials, in any state."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(_key(trial.values), []).append(trial)
    found = [
        Configuration(values=group[0].values, trials=tuple(sorted(group, key=lambda trial: (trial.seed, trial.name))))
        for group in groups.values()
    ]

    def rank(each: Configuration) -> tuple[float, int, float, str]:
        step, score = each.reached
        return (math.inf if each.mean is None else -each.mean, -step, -score, _key(each.values))

    found.sort(key=rank)
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    varied = tuple(name for name in names if len({_key(trial.values.get(name)) for trial in trials}) > 1)
    step, compared = _comparable(trials, least_scores(len(varied)))
    importance = parameter_importance(
        [trial.values for trial in compared],
        [trial.scores[step] for trial in compared],
        varied,
        of=f"mIoU at step {step}",
    )
    return SweepReport(
        trials=tuple(trials),
        configurations=_with_p_values(found),
        varied=varied,
        best=best_trial(trials),
        importance=importance,
        seed_share=_seed_share(found),
    )


def last_score(trial: TrialRecord) -> float | None:
    """Return the mIoU in percent at the last rung; None if it is missing or not finite."""
    return trial.score if trial.score is not None and math.isfinite(trial.score) else None


def final_score(trial: TrialRecord) -> float | None:
    """Return the last score of a trial that has finished; None for others."""
    return last_score(trial) if trial.status == "finished" else None


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the finished trial with the highest score, else any trial with the highest score; None without scores."""
    for score in (final_score, last_score):
        if scored := [(value, trial) for trial in trials if (value := score(trial)) is not None]:
            return max(scored, key=lambda pair: pair[0])[1]
    return None


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last parts of each dotted name, as many as distinguish it from the others."""
    found: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        endings = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        others = [other for other in names if other != name]
        found[name] = next(
            (end for end in endings if not any(other == end or other.endswith(f".{end}") for other in others)), name
        )
    return found


def text(value: Any, digits: int = 6) -> str:
    """Return a value as it is shown: `6-3-3` for a tuple, `1e-05` for a number, with `digits` significant digits."""
    if isinstance(value, (tuple, list)):
        nested = any(isinstance(item, (tuple, list)) for item in value)
        return (" / " if nested else "-").join(text(item, digits) for item in value) or "()"
    return "none" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def jsonable(value: Any) -> Any:
    """Return a parameter's value as JSON can hold it; other values as text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [jsonable(item) for item in value]
    is_plain = value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else str(value)


def _key(value: Any) -> str:
    """Return a key that is equal for equal values. A tuple read back from JSON is a list."""
    return json.dumps(jsonable(value), sort_keys=True)


def _comparable(trials: Sequence[TrialRecord], enough: int) -> tuple[int, list[TrialRecord]]:
    """Return the latest rung that `enough` trials have reached, and those trials: scores of different rungs are not
    comparable. Without such a rung, return the one that most trials have reached."""
    by_step: dict[int, list[TrialRecord]] = {}
    for trial in trials:
        for step, score in trial.scores.items():
            if math.isfinite(score):
                by_step.setdefault(step, []).append(trial)
    if not by_step:
        return 0, []
    step = max(by_step, key=lambda step: (min(len(by_step[step]), enough), step))
    return step, by_step[step]


def _with_p_values(configurations: Sequence[Configuration]) -> tuple[Configuration, ...]:
    """Return the configurations, each after the first compared with the first."""
    p_values = {
        index: p_value
        for index, each in enumerate(configurations)
        if index
        and (p_value := welch_p_value([*configurations[0].scores.values()], [*each.scores.values()])) is not None
    }
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return tuple(dataclasses.replace(each, p_value=corrected.get(index)) for index, each in enumerate(configurations))


def _seed_share(configurations: Sequence[Configuration]) -> float | None:
    """Return the within-configuration sum of squares over the total one, for configurations with at least two seeds."""
    groups = [list(each.scores.values()) for each in configurations if len(each.scores) > 1]
    if len(groups) < 2:
        return None
    scores = [score for group in groups for score in group]
    total = math.fsum((score - statistics.fmean(scores)) ** 2 for score in scores)
    within = math.fsum((score - statistics.fmean(group)) ** 2 for group in groups for score in group)
    return within / total if total > 0 else None


def _trial_summary(trial: TrialRecord) -> dict[str, Any]:
    return {
        "name": trial.name,
        "values": jsonable(trial.values),
        "seed": trial.seed,
        "status": trial.status,
        "stop_reason": trial.stop_reason,
        "scores": {str(step): jsonable(score) for step, score in sorted(trial.scores.items())},
        "part_scores": jsonable(trial.part_scores),
        "run_id": trial.run_id,
        "checkpoint": trial.checkpoint,
        "train_seconds": trial.train_seconds,
    }
