"""How figures are written for people, and put into a few words."""

import math
from collections.abc import Callable, Mapping

Wording = Callable[[Mapping[str, float]], str]
"""Puts a stage's figures into a few words; empty where one of them is missing."""

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
"""How people write the size of a model."""


def figure(value: float) -> str:
    """Write a number in at most four significant digits."""
    if 1e6 <= abs(value) < 1e15:
        scale, unit = next(pair for pair in UNITS if abs(value) >= pair[0])
        return f"{value / scale:.3g}{unit}"
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def worded(pattern: str, *names: str) -> Wording:
    """Fill named figures into a pattern: `worded("{} rows", "train_rows")` gives `640 rows`."""

    def text(metrics: Mapping[str, float]) -> str:
        if not set(names) <= metrics.keys():
            return ""
        return pattern.format(*(figure(metrics[name]) for name in names))

    return text
