"""Statistical tests of whether a difference could be chance, and the text for their p-values."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.05
"""Significance level: a difference with a smaller p-value is reported as more than chance."""
_NUM_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Test of the mean of paired differences."""

    num_pairs: int
    mean: float
    """Mean difference."""
    low: float
    high: float
    """95 % confidence interval of the mean, by bootstrap over the pairs."""
    num_better: int
    num_worse: int
    effect: float | None
    """Mean difference in units of the standard deviation of the differences. None: they are all the same."""
    p_value: float
    """Two-sided p-value of a zero mean: how often random signs give a mean at least as large."""


def paired_test(differences: NDArray[np.float64], *, seed: int = 0) -> PairedTest:
    """Runs a permutation test of signs and a bootstrap on differences [N], N >= 1. The result is deterministic."""
    assert differences.ndim == 1 and len(differences) and np.isfinite(differences).all()
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    low = high = mean
    p_value = 1.0
    if len(differences) > 1 and np.ptp(differences) > 0:
        interval = stats.bootstrap(
            (differences,), np.mean, n_resamples=_NUM_RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    if len(differences) > 1 and differences.any():
        p_value = float(
            stats.permutation_test(
                (differences,),
                np.mean,
                permutation_type="samples",
                n_resamples=_NUM_RESAMPLES,
                vectorized=True,
                batch=max(1, 2_000_000 // len(differences)),
                rng=np.random.default_rng(seed),
            ).pvalue
        )
    return PairedTest(
        num_pairs=len(differences),
        mean=mean,
        low=low,
        high=high,
        num_better=int((differences > 0).sum()),
        num_worse=int((differences < 0).sum()),
        effect=mean / deviation if deviation > 0 else None,
        p_value=min(1.0, p_value),
    )


def welch_p_value(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of equal means with unequal variances (Welch's t-test).

    Returns None if it is undefined: a side has fewer than two values, or there is no spread at all.
    """
    if len(first) < 2 or len(second) < 2 or np.ptp(first) + np.ptp(second) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # from seeds with nearly equal values
        _, p_value = np.asarray(stats.ttest_ind(first, second, equal_var=False))
    return float(p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number (Holm 1979): each can then be compared with `ALPHA` as if it were alone."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def shown(p_value: float) -> str:
    """Formats a p-value for a sentence: `p = 0.03`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"
