"""Evidence about a mean that may be looked at again and again: wealth won by betting against it.

H0 says that each value, whatever came before it, has a mean of at most m; values lie at or above
-B. Somebody who does not believe it bets a share of the wealth on each value being above m:

    K_n(l) = prod_{i <= n} (1 + l (d_i - m)),   0 <= l < 1 / (B + m)

Under H0 a bet wins nothing on average, so E[K_n(l)] <= 1 at any n, whatever the distribution, and
E[K_n] <= 1 for the mean K_n of K_n(l) over a fixed set of bets l. By Ville's inequality (1939) the
wealth ever reaches 1 / alpha with probability of at most alpha: look whenever you like, stop or go
on (Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by betting, JRSS B 86).
K_n is a product: it does not depend on the order of the values, so that of two people with the same
documents neither has more evidence.

What is used is the wealth at the last value, not the largest on the way: this costs a little power,
what came late may contradict, and only wealth at one moment can be averaged over tasks
(`requant.gate.several`).
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BETS = 8
"""Each is at most a quarter from the best bet of any sample, which costs a sixteenth of its growth;
having to share the wealth among them costs at most log(8) = 2.1 nats."""
GREATEST = 0.98
"""Share of the bet that one value could ruin: with that bet any wealth would be lost for good."""
LEAST = 0.05
"""Smaller bets are best only where many thousands of units are needed."""


def bets(null: float, least: float) -> "Floats":
    """Return the fixed bets l against a mean of at most `null` of values at or above `least`."""
    import numpy as np

    shares: Floats = np.geomspace(LEAST, GREATEST, BETS, dtype=np.float64)
    return shares / (null - least)


def growth(values: "Floats", null: float, least: float) -> "Floats":
    """Return how fast each bet grows: mean of log(1 + l (d - m)) over the values, in nats a value.

    Args:
        values: Of shape (..., n), none below `least`.
        null: m, above `least`.
        least: -B.

    Returns:
        Shape (..., bets); zeros where n is 0.
    """
    import numpy as np

    stakes = bets(null, least)
    if not values.shape[-1]:
        return np.zeros((*values.shape[:-1], len(stakes)))
    gains = [np.log1p(stake * (values - null)).mean(axis=-1) for stake in stakes]
    return np.stack(gains, axis=-1)


def log_wealth(rates: "Floats", count: int) -> "Floats":
    """Return log K_n = log mean_l exp(n * growth of l), in nats; the e-value's logarithm.

    Args:
        rates: As `growth` returns them, of shape (..., bets).
        count: n.
    """
    from scipy.special import logsumexp

    wealth: Floats = logsumexp(count * rates, axis=-1) - math.log(rates.shape[-1])
    return wealth


def units_until(rates: "Floats", wanted: float) -> int | None:
    """Return the smallest n at which the wealth is enough, should values go on as they were.

    log K_n is convex in n and 0 at n = 0, so it is enough from one n on.

    Args:
        rates: As `growth` returns them for one sample, of shape (bets,).
        wanted: log(1 / alpha), above 0.

    Returns:
        None where no bet wins, since the mean is on the wrong side, or where none is ever enough.
    """
    best = float(rates.max())
    if best <= 0 or math.isinf(wanted):
        return None
    low, high = 0, math.ceil((wanted + math.log(len(rates))) / best)
    while high - low > 1:
        middle = (low + high) // 2
        if log_wealth(rates, middle) >= wanted:
            high = middle
        else:
            low = middle
    return high
