"""Evidence from several tasks: what may be said of one of them, having looked at all."""

import math
from collections.abc import Sequence


def adjusted(log_e: Sequence[float]) -> list[float]:
    """Return for each hypothesis the log of its e-value, adjusted for having looked at all of them.

    A set of hypotheses that all hold has the mean of their e-values as its e-value, however they
    depend on each other. Closed testing then gives hypothesis j the smallest mean over all sets
    that contain it: j together with the i smallest others, for some i (Vovk & Wang 2021, E-values:
    calibration, combination and applications, Annals of Statistics 49, algorithm 1). To reject
    where the result reaches log(1 / alpha) keeps the chance of any wrong rejection at alpha. It
    rejects whatever Holm (1979) does on p = 1 / e, and more: (e_1 + ... + e_k) / k >= max e / k.

    Args:
        log_e: In nats.
    """
    import numpy as np

    found = []
    for place, own in enumerate(log_e):
        others = sorted(value for index, value in enumerate(log_e) if index != place)
        sums = np.logaddexp.accumulate([own, *others])
        found.append(min(float(each) - math.log(size) for size, each in enumerate(sums, 1)))
    return found
