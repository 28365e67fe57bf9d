"""Which of the varied parameters made the scores differ: functional ANOVA (Hutter et al. 2014), by Optuna.

A forest of regression trees is fitted to the scores. A parameter's importance is the share of the forest's variance
that it explains alone, averaged over all values of the others. The rest up to 1 is interactions of parameters, and
noise that the forest has learnt.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST_CONFIGURATIONS = 4
"""Minimum number of configurations. With fewer, a forest says more about itself than about the parameters."""
LOG_SPREAD = 20
"""Positive numbers are compared by their logarithm if the largest is at least this many times the smallest."""
_MOST_LEVELS = 5
"""Numbers with at most this many distinct values are levels of a grid, with equal weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Shares of the variance of the scores, or the reason why there are none."""

    shares: Mapping[str, float]
    """Share of each parameter, largest first: 0 to 1, at most 1 in total. Empty if unknown."""
    note: str
    """One line: what the shares refer to, or why they are missing."""


def parameter_importance(
    values: Sequence[Mapping[str, Any]], scores: Sequence[float], varied: Sequence[str], *, of: str
) -> Importance:
    """Return the importance of the parameters `varied` over trials with the given values and scores.

    `of` describes the scores in the note. The same trials give the same result, in any order.
    """
    if not varied:
        return Importance(shares={}, note="no parameter was varied")
    if len(varied) == 1:
        note = f"only {varied[0]} was varied: differences between configurations come from it or from the seeds"
        return Importance(shares={}, note=note)
    texts = [tuple(repr(each.get(name)) for name in varied) for each in values]
    num_configurations = len(set(texts))
    enough = least_scores(len(varied))
    if len(scores) < enough or num_configurations < LEAST_CONFIGURATIONS:
        note = (
            f"{len(scores)} scores of {num_configurations} configurations are too few to tell: it takes "
            f"{enough} scores of {LEAST_CONFIGURATIONS} configurations for {len(varied)} parameters"
        )
        return Importance(shares={}, note=note)
    if max(scores) - min(scores) < 1e-9:
        return Importance(shares={}, note="all scores are equal: no parameter made a difference")
    order = sorted(range(len(scores)), key=lambda index: (texts[index], scores[index]))
    shares = _functional_anova([values[index] for index in order], [scores[index] for index in order], varied)
    if shares is None:
        return Importance(shares={}, note="the scores could not be told apart by any parameter")
    share = "share that a parameter alone has in what configurations differ by, seeds aside"
    note = f"{share} (fANOVA over {len(scores)} trials, {of})"
    return Importance(shares=dict(sorted(shares.items(), key=lambda item: (-item[1], item[0]))), note=note)


def least_scores(num_parameters: int) -> int:
    """Return the number of scores needed to distinguish the parameters."""
    return max(8, 4 * num_parameters)


def is_scale(column: Sequence[Any]) -> bool:
    """Whether the values are points of a scale rather than names: finite numbers, more than five of them distinct."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in column)
    return numbers and all(math.isfinite(value) for value in column) and len(set(column)) > _MOST_LEVELS


def is_logarithmic(column: Sequence[float]) -> bool:
    """Whether the numbers of a scale spread over orders of magnitude."""
    return min(column) > 0 and max(column) / min(column) >= LOG_SPREAD


def _functional_anova(
    values: Sequence[Mapping[str, Any]], scores: Sequence[float], varied: Sequence[str]
) -> dict[str, float] | None:
    import optuna  # takes a second to import
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    columns: dict[str, list[Any]] = {}
    distributions: dict[str, BaseDistribution] = {}
    for name in varied:
        column: list[Any] = [each.get(name) for each in values]
        if is_scale(column):
            points = [math.log(value) if is_logarithmic(column) else float(value) for value in column]
            columns[name], distributions[name] = points, FloatDistribution(min(points), max(points))
        else:
            columns[name] = [repr(value) for value in column]
            distributions[name] = CategoricalDistribution(sorted(set(columns[name])))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for index, score in enumerate(scores):
            params = {name: column[index] for name, column in columns.items()}
            study.add_trial(optuna.trial.create_trial(value=score, params=params, distributions=distributions))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    finally:
        optuna.logging.set_verbosity(verbosity)
    found = {name: float(share) for name, share in shares.items()}
    return found if all(np.isfinite(list(found.values()))) and sum(found.values()) > 0 else None
