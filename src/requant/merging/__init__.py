"""The merge: adapters into a model folder, streamed by blocks, exact, refused where wrong."""

from requant.merging.plan import (
    MergePlan,
    Mix,
    onto_dequantized,
    per_tensor,
    plan_merge,
    scaled,
    totals,
    write_dequantized,
    write_plan,
)

__all__ = [
    "MergePlan",
    "Mix",
    "onto_dequantized",
    "per_tensor",
    "plan_merge",
    "scaled",
    "totals",
    "write_dequantized",
    "write_plan",
]
