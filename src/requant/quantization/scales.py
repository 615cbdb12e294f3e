"""The scale of each group of a symmetric grid: the one whose rounding errs least.

A symmetric grid of b bits has 2^(b-1) codes below zero and one fewer above. GPTQModel gives both
sides the same reach, so that half a step of the largest weights is cut off where they are positive.
Here the side with more codes is laid where the largest weight is, by a scale that may be negative
(llama.cpp's Q4_0 does the same): the layout is the same, and every reader multiplies by the scale.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REACHES = tuple(1.0 - 0.03 * step for step in range(16))
"""Shares of the largest weight that the longer side of the grid is tried to cover."""


def symmetric_scales(weights: "torch.Tensor", bits: int, power: float) -> "torch.Tensor":
    """Search each group's scale for the least sum |q(w) - w|^power.

    q(w) = s * clamp(round(w / s), -2^(b-1), 2^(b-1) - 1), s tried over `REACHES` with both signs.

    Args:
        weights: Floating, [rows, group].
        bits: b.
        power: 2 is the mean squared error; above it large errors count for more.

    Returns:
        s, as `weights`, [rows]; never 0.
    """
    import torch

    codes = 2 ** (bits - 1)
    reach = weights.abs().amax(1)
    reach = torch.where(reach == 0, torch.ones_like(reach), reach)
    towards = torch.where(weights.amax(1) > -weights.amin(1), -reach, reach) / codes
    least = torch.full_like(reach, float("inf"))
    best = towards
    for share in REACHES:
        for scale in (share * towards, -share * towards):
            step = scale.unsqueeze(1)
            error = torch.round(weights / step).clamp_(-codes, codes - 1).mul_(step).sub_(weights)
            total = error.abs_().pow_(power).sum(1)
            best = torch.where(total < least, scale, best)
            least = torch.minimum(total, least)
    return best
