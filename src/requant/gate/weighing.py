"""The evidence of one task against one reference, for and against the candidate."""

import math
from dataclasses import dataclass

from requant.errors import ConfigError
from requant.gate.evidence import growth, log_wealth, units_until
from requant.gate.intervals import plain_mean, trimmed_mean
from requant.gate.rules import WITHIN_ONE, Differences, Kind, Rule


@dataclass(frozen=True)
class Weighed:
    """Logarithms of e-values in nats; of a tail None where units cannot lose more than counts."""

    mean: float
    """As the values are, not cut at `reach`; NaN of no units."""
    trimmed: float
    """Mean without the tenth of the units at either end, which no few units move; of scores from 0
    to 1, which have no outliers, the mean."""
    broken: int
    """Units that lose more than `reach`."""
    log_for: float
    """Against H0: the mean of what counts is at most the rule's `null`."""
    log_against: float
    """Against H0: that mean is at least what is hoped for."""
    tail_for: float | None
    """Against H0: at least `broken_share` of the units lose more than `reach`."""
    tail_against: float | None
    """Against H0: at most `broken_share` of them do."""
    units_for: int | None
    """Units at which the candidate would pass, should they go on as they were; None: never."""


def weigh(rule: Rule, differences: Differences, wanted: float) -> Weighed:
    """Weigh the evidence of one task's differences d against one reference.

    Each counts as min(max(d, -reach), reach). What is cut of gains makes passing harder; what is
    cut of losses is caught by the share of units that lose more than `reach`, which has evidence of
    its own: the mean of -1 for a broken unit and 0 for any other, against -`broken_share`.

    Args:
        wanted: log(1 / alpha): from where on evidence for the candidate is enough.

    Raises:
        ConfigError: If an accuracy's flips would count less than they are.
    """
    import numpy as np

    if differences.kind == "accuracy" and rule.reach < 1:
        raise ConfigError(
            f"gate: reach of {differences.task} is {rule.reach:g}; a document that goes from right "
            "to wrong loses 1, so the reach of an accuracy must be at least 1"
        )

    values = np.asarray(differences.values, dtype=np.float64)
    counted = np.clip(values, -rule.reach, rule.reach)
    broken = -(values < -rule.reach).astype(np.float64)
    upwards = growth(counted, rule.null, -rule.reach)
    downwards = growth(-counted, -rule.hoped, -rule.reach)
    whole = growth(broken, -rule.broken_share, -1.0)
    count = len(values)
    tails = rule.looks_for_broken(differences.kind)
    needs = [units_until(upwards, wanted), *([units_until(whole, wanted)] if tails else [])]
    mean = plain_mean(differences.values)
    # More units like these leave the plain mean where it is.
    trimmed = mean if differences.kind in WITHIN_ONE else trimmed_mean(differences.values)
    passes = min(mean, trimmed) > rule.null and all(need is not None for need in needs)
    return Weighed(
        mean=mean,
        trimmed=trimmed,
        broken=-round(float(broken.sum())),
        log_for=float(log_wealth(upwards, count)),
        log_against=float(log_wealth(downwards, count)),
        tail_for=float(log_wealth(whole, count)) if tails else None,
        tail_against=(
            float(log_wealth(growth(-broken, rule.broken_share, 0.0), count)) if tails else None
        ),
        units_for=max(need for need in needs if need is not None) if passes else None,
    )


def enough(weighed: Weighed, rule: Rule, adjusted_for: float, wanted: float) -> bool:
    """Tell whether a task passes: by its evidence, and by its means, which have no error bound.

    The plain mean, which few units decide, and the trimmed one, which no few can, only take a pass
    away, so they cost no error control.
    """
    tail = math.inf if weighed.tail_for is None else weighed.tail_for
    return min(adjusted_for, tail) >= wanted and min(weighed.mean, weighed.trimmed) > rule.null


def least_units(rule: Rule, kind: Kind, alpha: float) -> int | None:
    """Return the units at which a task passes where none of them changes; of fewer hardly any does.

    Args:
        rule: Of a guard.
        kind: Of the scores.
        alpha: Chance of an error.

    Returns:
        None where no number is enough.
    """
    unchanged = Differences("", "", kind, [0.0] * 8)
    return weigh(rule, unchanged, -math.log(alpha) if alpha else math.inf).units_for
