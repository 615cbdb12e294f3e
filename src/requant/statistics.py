"""Means of paired measurements, how well they are known, and what may be said of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
"""Confidence of every interval."""

Verdict = Literal["better", "worse", "no clear change", "too few documents"]


@dataclass(frozen=True)
class Paired:
    """Mean difference of the same documents' scores, later minus earlier model."""

    mean: float
    stderr: float | None
    """None for one document."""
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Estimate:
    """A mean per token, and its standard error over sequences."""

    mean: float
    error: float
    """Sequences are what varies independently, their tokens are not. NaN for one sequence."""

    def interval(self, sequences: int) -> tuple[float, float]:
        """Return the ends of the interval around the mean of so many sequences."""
        reach = student_reach(self.error, sequences)
        return self.mean - reach, self.mean + reach

    def at_least(self, sequences: int) -> float:
        """Return the lower end of that interval; of one sequence, which has none, the mean."""
        return self.interval(sequences)[0] if sequences > 1 else self.mean


def student_reach(stderr: float, count: int) -> float:
    """Return half the width of the interval around a mean: t(0.975, count - 1) * stderr.

    Of 8 values t is 2.36 where the normal distribution has 1.96; of 100 it is 1.98 (Student 1908).

    Args:
        stderr: Standard error of the mean.
        count: Values the mean is of; NaN comes out for one.
    """
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stderr if count > 1 else math.nan


def paired_difference(differences: Sequence[float]) -> Paired:
    """Estimate a mean difference d from the same documents' scores under two models.

    The interval is mean(d) +- t(0.975, n - 1) * sd(d) / sqrt(n), which is the paired t-test's. It
    is narrower than two separate intervals by as much as the models agree on which documents are
    hard.

    Args:
        differences: At least one; later minus earlier.
    """
    n = len(differences)
    mean = math.fsum(differences) / n
    if n < 2:
        return Paired(mean=mean, stderr=None, low=None, high=None, n=n)
    variance = math.fsum((value - mean) ** 2 for value in differences) / (n - 1)
    stderr = math.sqrt(variance / n)
    reach = student_reach(stderr, n)
    return Paired(mean=mean, stderr=stderr, low=mean - reach, high=mean + reach, n=n)


def ratio_estimate(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """Estimate a mean per token from sequences of different lengths.

    r = sum(y) / sum(n); its standard error is sqrt(k / (k - 1) sum((y - r n)^2)) / sum(n) over k
    sequences (Cochran 1977, Sampling Techniques, eq. 6.9, the linearised ratio).

    Args:
        sums: y, summed over the tokens of each sequence.
        counts: n, tokens of each sequence.
    """
    tokens, sequences = sum(counts), len(counts)
    mean = sum(sums) / tokens
    if sequences < 2:
        return Estimate(mean, math.nan)
    squares = sum((y - mean * n) ** 2 for y, n in zip(sums, counts, strict=True))
    return Estimate(mean, math.sqrt(sequences / (sequences - 1) * squares) / tokens)


@dataclass(frozen=True)
class Gain:
    """What texts won under a model, and what of it another model has: losses in nats, by text."""

    before: tuple[float, ...]
    """Losses under the model that both are held against."""
    reached: tuple[float, ...]
    """Losses under the model that won."""
    left: tuple[float, ...]
    """Losses under the model of which it is asked what it lost."""
    counts: tuple[float, ...]
    """Tokens of each text."""

    @property
    def won(self) -> float:
        """Nats a token that the model that won predicts the texts better by."""
        return (math.fsum(self.before) - math.fsum(self.reached)) / math.fsum(self.counts)

    @property
    def lost(self) -> float:
        """Nats a token that the other model predicts the texts worse by."""
        return (math.fsum(self.left) - math.fsum(self.reached)) / math.fsum(self.counts)

    def excess(self, share: float) -> float:
        """Return what is lost at least beyond `share` of what was won, nats a token.

        The lower end of the 95 % interval over texts, of pairs: ratio_estimate of lost - share won.
        Where nothing was won nothing may be lost. Of one text the mean; NaN stays NaN.

        Args:
            share: Of what was won; 0 to any.
        """
        share = share if self.won > 0 else 0.0
        texts = zip(self.before, self.reached, self.left, strict=True)
        beyond = [left - reached - share * (before - reached) for before, reached, left in texts]
        return ratio_estimate(beyond, self.counts).at_least(len(beyond))


def verdict(low: float | None, high: float | None, *, higher_is_better: bool) -> Verdict:
    """Judge a paired difference by its interval, which one document does not have."""
    if low is None or high is None:
        return "too few documents"
    if low <= 0 <= high:
        return "no clear change"
    return "better" if (low > 0) == higher_is_better else "worse"
