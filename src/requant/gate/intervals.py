"""Intervals and counts that a page shows beside the evidence. None of them decides."""

import math
from collections.abc import Sequence

from requant.gate.rules import Differences
from requant.statistics import CONFIDENCE, paired_difference

RESAMPLES = 2000
FEWEST = 10
"""Values that a bootstrap needs: of fewer, or of equal ones, it draws too little that differs."""


def interval(differences: Differences) -> tuple[float | None, float | None, str]:
    """Return the ends of a 95% interval of the mean difference, and what kind of interval it is.

    Units are means over clusters of documents, so an interval over units is one over clusters. A
    task's own number may be shaped in any way and is bootstrapped (bias-corrected and accelerated,
    Efron 1987); of the other kinds it is the paired t-test's.

    Returns:
        No ends for fewer than two units.
    """
    values = differences.values
    if len(values) < 2:
        return None, None, "none of one unit"
    if differences.kind == "own" and len(values) >= FEWEST and min(values) < max(values):
        return *_bootstrapped(values), "bootstrap over units"
    found = paired_difference(values)
    return found.low, found.high, "paired t over units"


def _bootstrapped(values: Sequence[float]) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def mcnemar(flips: tuple[int, int]) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947).

    Where a change is as likely either way, the flips one way are binomial(all flips, 1/2).

    Args:
        flips: Documents right to wrong, and wrong to right.
    """
    from scipy.stats import binomtest

    return float(binomtest(flips[0], sum(flips)).pvalue) if sum(flips) else 1.0


def trimmed_mean(values: Sequence[float], share: float = 0.1) -> float:
    """Return the mean without the `share` of the values at either end, NaN of none."""
    cut = int(share * len(values))
    return plain_mean(sorted(values)[cut : len(values) - cut])


def plain_mean(values: Sequence[float]) -> float:
    """Return the mean of the values as they are, NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan
