"""Curves as pictures."""

import math
from typing import Any

from requant.figures import figure
from requant.store.records import Curve

CURVE_WIDTH, CURVE_HEIGHT = 420, 150


def drawn_curve(curve: Curve) -> dict[str, Any]:
    """Scale a curve into a picture of CURVE_WIDTH x CURVE_HEIGHT pixels, y upwards.

    Args:
        curve: At least one (step, value) whose value is finite; others leave no mark.

    Returns:
        points (for an SVG polyline), the first and last steps and extreme values for the axes, and
        how many points are left out.
    """
    left_out = sum(not math.isfinite(value) for _, value in curve)
    curve = tuple(point for point in curve if math.isfinite(point[1]))
    steps = [step for step, _ in curve]
    values = [value for _, value in curve]
    low, high = min(values), max(values)
    across = max(steps[-1] - steps[0], 1)
    up = (high - low) or 1.0
    points = " ".join(
        f"{(step - steps[0]) / across * CURVE_WIDTH:.1f},"
        f"{CURVE_HEIGHT - (value - low) / up * CURVE_HEIGHT:.1f}"
        for step, value in curve
    )
    return {
        "points": points,
        "first_step": steps[0],
        "last_step": steps[-1],
        "low": figure(low),
        "high": figure(high),
        "first": figure(values[0]),
        "last": figure(values[-1]),
        "width": CURVE_WIDTH,
        "height": CURVE_HEIGHT,
        "left_out": left_out,
    }
