"""What an adapter does to one tensor: float32 rows in, float32 rows out, nothing rounded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Apply = Callable[["torch.Tensor", slice], "torch.Tensor"]
"""(float32 rows of the original, which rows they are) -> the same rows merged, float32.

The rows that are handed in may be overwritten."""

Axis = Literal["rows", "columns"]


@dataclass(frozen=True)
class Update:
    """What becomes of one tensor of the original."""

    shape: tuple[int, ...]
    """Shape of the merged tensor; only the first dimension may differ from the original's."""
    open: Callable[[], Apply]
    """Reads the adapter's part of it, when the tensor's turn has come."""
    by_rows: bool = True
    """Rows can be merged without seeing the others."""
    open_start: Callable[[], Apply] | None = None
    """Opens what the tensor is before the update, where that is not the original itself."""
    adapted: bool = True
    """An adapter changes it; false where only its start differs from the original."""
    open_square: "Callable[[], Callable[[slice], float]] | None" = None
    """Opens a function from rows to the squared norm of what is added to them; None where that
    costs no less than the difference."""


@dataclass(frozen=True)
class LowRank:
    """The factors of a LoRA or DoRA update of one weight, as the weight lies in its file."""

    left: "torch.Tensor"
    """[rows, rank]: B of a linear layer, A transposed where the file holds W transposed."""
    right: "torch.Tensor"
    """[rank, columns]."""
    scale: float
    magnitude: "torch.Tensor | None" = None
    """DoRA's m, one entry per output."""
    outputs: Axis = "rows"
    """Where the outputs lie: rows of a linear layer, columns of Conv1D and of an embedding."""


def merge_low_rank(weight: "torch.Tensor", update: LowRank, rows: slice) -> "torch.Tensor":
    """Apply a low-rank update to rows of a weight.

    LoRA: W' = W + s B A (arXiv:2106.09685, eq. 3). DoRA: W' = m (W + s B A) / ||W + s B A||, the
    norm of each output (arXiv:2402.09353, eq. 5; peft 0.21 tuners/lora/dora.py).

    Args:
        weight: float32 [rows, columns]; overwritten.
        update: Of the whole weight.
        rows: Which rows `weight` is; all of them where a magnitude belongs to columns.

    Returns:
        float32 [rows, columns].
    """
    merged = weight.addmm_(update.left[rows], update.right, alpha=update.scale)
    if update.magnitude is None:
        return merged
    if update.outputs == "rows":
        return merged.mul_((update.magnitude[rows] / merged.norm(dim=1)).unsqueeze(1))
    return merged.mul_(update.magnitude / merged.norm(dim=0))


def square_of(update: LowRank) -> Callable[[slice], float]:
    """Squared Frobenius norm of s L R for rows of L, without the product.

    ||L R||^2 = sum((L R R^T) * L), at rank^2 operations a row instead of rank * columns.
    """
    gram = update.right @ update.right.T

    def square(rows: slice) -> float:
        left = update.left[rows]
        # Of an update that cancels out the sum of float32 products may fall below zero.
        return max(0.0, update.scale**2 * float(((left @ gram) * left).sum()))

    return square


def interpolated(update: Update, scale: float) -> Update:
    """Go only part of the way: W + scale (W' - W).

    Args:
        update: The whole way.
        scale: 0 is the original, 1 the whole way.
    """

    def open_scaled() -> Apply:
        apply = update.open()

        def part(weight: "torch.Tensor", rows: slice) -> "torch.Tensor":
            return weight.lerp(apply(weight.clone(), rows), scale)

        return part

    # Its square would be of the whole way.
    return update if scale == 1 else replace(update, open=open_scaled, open_square=None)


def replaced(file: Path, name: str, shape: tuple[int, ...]) -> Update:
    """Take the place of a tensor whole.

    Args:
        file: *.safetensors.
        name: Of the tensor in it.
        shape: Of the tensor.
    """

    def open_replacement() -> Apply:
        from safetensors import safe_open

        # By slices: the embedding of a large model alone would fill what the merge may use.
        opened = safe_open(file, framework="pt")
        if not shape:
            scalar = opened.get_tensor(name)  # type: ignore[no-untyped-call]
            return lambda weight, rows: scalar.float().reshape(1)
        tensor = opened.get_slice(name)  # type: ignore[no-untyped-call]
        return lambda weight, rows: tensor[rows].float()

    return Update(shape, open_replacement)


def chained(first: Update | None, second: Update) -> Update:
    """One update upon the result of another."""
    if first is None:
        return second

    def open_both() -> Apply:
        inner, outer = first.open(), second.open()
        return lambda weight, rows: outer(inner(weight, rows), rows)

    return replace(
        second,
        open=open_both,
        by_rows=first.by_rows and second.by_rows,
        open_start=first.open_start,
        adapted=first.adapted or second.adapted,
        open_square=None,
    )
