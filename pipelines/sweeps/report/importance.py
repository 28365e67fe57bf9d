"""Which of the parameters that a sweep varied made the scores differ: functional ANOVA (Hutter et al. 2014), by Optuna.

A forest of regression trees is fitted to the scores; a parameter's importance is the share of the forest's variance
that it explains alone, averaged over all values of the others. What is missing to 1 are interactions of parameters,
and what the forest has learnt of noise.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST_CONFIGURATIONS = 4
"""With fewer, a forest says more of itself than of the parameters."""
LOG_SPREAD = 20
"""Positive numbers whose largest is this many times the smallest are looked at by their logarithm."""
_MOST_LEVELS = 5
"""Numbers of so few values are levels of a grid, each of the same weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Shares of the variance of the scores, or why there are none."""

    shares: Mapping[str, float]
    """By parameter, falling: 0 to 1, at most 1 together. Empty if it cannot be told."""
    note: str
    """One line: what the shares are of, or why they are missing."""


def parameter_importance(
    values: Sequence[Mapping[str, Any]], scores: Sequence[float], varied: Sequence[str], *, of: str
) -> Importance:
    """Importance of the parameters `varied` over trials of the given values and scores.

    `of`: what the scores are, for the note. Always the same for the same trials, in any order.
    """
    if not varied:
        return Importance(shares={}, note="no parameter was varied")
    if len(varied) == 1:
        note = f"only {varied[0]} was varied: whatever configurations differ by is its work, or that of seeds"
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
    """Scores it takes to tell the parameters apart."""
    return max(8, 4 * num_parameters)


def is_scale(column: Sequence[Any]) -> bool:
    """Whether the values are points of a scale rather than names: numbers of more than a few values."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in column)
    return numbers and all(math.isfinite(value) for value in column) and len(set(column)) > _MOST_LEVELS


def is_logarithmic(column: Sequence[float]) -> bool:
    """Whether the numbers of a scale spread over orders of magnitude."""
    return min(column) > 0 and max(column) / min(column) >= LOG_SPREAD


def _functional_anova(
    values: Sequence[Mapping[str, Any]], scores: Sequence[float], varied: Sequence[str]
) -> dict[str, float] | None:
    import optuna  # takes a second, which only a sweep has
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
