"""Several adapters into one model: their updates of each weight combined in float32.

On whole updates, not on their factors: peft's `add_weighted_adapter` combines A and B apart, which
is exact for `cat` alone, (A1 + A2)(B1 + B2) being more than A1 B1 + A2 B2.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from requant.combination import Combination
from requant.merging.updates import Apply, Update

if TYPE_CHECKING:
    import torch

MEANS: tuple[Combination, ...] = ("ties", "dare_ties")
"""Those that average what they keep of each weight, so that shares would be taken twice."""
BY_ROWS: tuple[Combination, ...] = ("cat", "linear")
"""Those that look at one weight at a time; the others rank the weights of a whole tensor."""


def combined_updates(
    adapters: Sequence[Mapping[str, Update]],
    method: Combination,
    weights: Sequence[float],
    *,
    density: float,
    seed: int,
) -> dict[str, Update]:
    """Combine what several adapters do to each tensor.

    Args:
        adapters: Of each adapter, tensor name to update.
        method: cat and linear are the same weighted sum; ties (arXiv:2306.01708), dare_linear and
            dare_ties (arXiv:2311.03099) and magnitude_prune as in peft 0.21 utils/merge_utils.py.
        weights: Of each adapter.
        density: Share of an update's weights that the pruning methods keep, 0 to 1.
        seed: Of dare's random choice.
    """
    names = dict.fromkeys(name for updates in adapters for name in updates)
    return {
        name: _combined(
            [
                (updates[name], weight)
                for updates, weight in zip(adapters, weights, strict=True)
                if name in updates
            ],
            partial(_combine, method=method, density=density, seed=f"{seed}-{name}"),
            by_rows=method in BY_ROWS,
        )
        for name in names
    }


def _combined(
    parts: Sequence[tuple[Update, float]], combine: "partial[torch.Tensor]", *, by_rows: bool
) -> Update:
    def open_all() -> Apply:
        import torch

        opened = [update.open() for update, _ in parts]
        weights = torch.tensor([weight for _, weight in parts])

        def apply(weight: "torch.Tensor", rows: slice) -> "torch.Tensor":
            deltas = [apply_one(weight.clone(), rows) - weight for apply_one in opened]
            return weight + combine(deltas, weights)

        return apply

    # Of adapters that resize nothing: each has the original's shape.
    shape = parts[0][0].shape
    return Update(shape, open_all, by_rows and all(update.by_rows for update, _ in parts))


def _combine(
    deltas: "list[torch.Tensor]",
    weights: "torch.Tensor",
    *,
    method: Combination,
    density: float,
    seed: str,
) -> "torch.Tensor":
    """Combine updates of one tensor.

    Args:
        deltas: float32, of equal shape.
        weights: float32 [adapters].
        method: See `combined_updates`.
        density: Likewise.
        seed: Likewise, for this tensor.
    """
    from peft.utils.merge_utils import (
        calculate_majority_sign_mask,
        disjoint_merge,
        magnitude_prune,
        reshape_weight_task_tensors,
        task_arithmetic,
        ties,
    )

    combination: torch.Tensor
    if method == "ties":
        combination = ties(deltas, weights, density)
    elif method == "magnitude_prune":
        combination = magnitude_prune(deltas, weights, density)
    elif method in BY_ROWS:
        combination = task_arithmetic(deltas, weights)
    elif method == "dare_linear":
        combination = task_arithmetic(list(_dropped(deltas, density, seed)), weights)
    else:
        kept = _dropped(deltas, density, seed)
        signs = calculate_majority_sign_mask(kept)
        combination = disjoint_merge(kept * reshape_weight_task_tensors(kept, weights), signs)
    return combination


def _dropped(deltas: "list[torch.Tensor]", density: float, seed: str) -> "torch.Tensor":
    """Drop weights at random and scale the rest up.

    Tensors are merged in threads, so the draw has a generator of its own, where peft draws from the
    process's.
    """
    import torch

    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    stacked = torch.stack(deltas)
    mask = torch.bernoulli(torch.full_like(stacked, density), generator=generator)
    return stacked * mask / density
