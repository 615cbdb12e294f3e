"""How small a change so many documents can show, before any is evaluated.

The logarithm of the wealth of a bet l on n values d is a sum of log(1 + l (d - m)), for large n
normal with mean n mu and spread sqrt(n) s. So four nights of five have at least
exp(n mu - z sqrt(n) s) with z = 0.84, and of all bets together the mean of these: they win and lose
on the same values.
"""

import math

from requant.gate.evidence import bets, growth, units_until
from requant.gate.rules import Rule

QUANTILES = 400
"""Points of the normal distribution that stands for a night's differences."""
NIGHTS = 0.8
"""Share of nights that are to show the change."""
STEPS = 24
"""Halvings of what is between a margin and a reach."""


def smallest_shown(rule: Rule, units: int, spread: float, alpha: float) -> float | None:
    """Return the smallest true mean with which a task passes in about four nights of five.

    Args:
        rule: What is asked of a task that is scored in nats a byte.
        units: Documents there are.
        spread: Standard deviation of a document's difference, nats a byte; the differences are
            taken for normal, and cut as the rule cuts them.
        alpha: Chance of an error, above 0.

    Returns:
        None where not even a mean of `rule.reach` would.
    """
    import numpy as np
    from scipy.special import logsumexp
    from scipy.stats import norm

    wanted = -math.log(alpha)
    stakes = bets(rule.null, -rule.reach)
    shape = spread * norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
    shortfall = norm.ppf(NIGHTS) * math.sqrt(units)

    def passes(mean: float) -> bool:
        values = mean + shape
        counted = np.clip(values, -rule.reach, rule.reach) - rule.null
        gains = np.log1p(stakes[:, None] * counted)
        wealth = logsumexp(units * gains.mean(axis=1) - shortfall * gains.std(axis=1))
        if wealth - math.log(len(stakes)) < wanted:
            return False
        if not rule.looks_for_broken("log_likelihood"):
            return True
        broken = -(values < -rule.reach).astype(np.float64)
        needed = units_until(growth(broken, -rule.broken_share, -1.0), wanted)
        return needed is not None and needed <= units

    low, high = rule.null, rule.reach
    if not passes(high):
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
