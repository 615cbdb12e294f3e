"""Rows of one tensor: read, merged, rounded and written, a block that fits the cache at a time."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.errors import ArtifactError, ParityError
from requant.merging.change import Change
from requant.merging.updates import Apply, Update
from requant.models.headers import TORCH_NAMES, TensorHeader

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Output:
    """One tensor as it will be written."""

    name: str
    source: TensorHeader
    target: TensorHeader
    update: Update | None


def unchanged(weight: "torch.Tensor", rows: slice) -> "torch.Tensor":
    """Return rows as they are: what an update that only starts elsewhere does."""
    return weight


def merge_rows(
    output: Output,
    start_of: Apply | None,
    apply: Apply,
    square: Callable[[slice], float] | None,
    rows: slice,
    step: int,
    source: int,
    target: int,
) -> tuple[str, Change] | None:
    """Merge some rows, a block of `step` of them at a time through the same memory.

    Raises:
        ParityError: If a merged row is not finite, or moves further than float32 can say.
    """
    import torch

    dtype = getattr(torch, TORCH_NAMES[output.target.dtype])
    shape = (step, *output.target.shape[1:])
    stored = torch.empty(shape, dtype=getattr(torch, TORCH_NAMES[output.source.dtype]))
    weight, rounded = torch.empty(shape), torch.empty(shape, dtype=dtype)
    difference = torch.empty(shape)
    update = square(rows) if square else 0.0
    error, moved, changed, weights = 0.0, 0.0, 0, 0
    for start in range(rows.start, rows.stop, step):
        part = slice(start, min(start + step, rows.stop))
        count = part.stop - part.start
        before = _read_rows(stored[:count], output.source, part, source)
        begun, start_rows = weight[:count].copy_(before), before
        if start_of is not None:
            begun = start_of(begun, part).clone()
            start_rows = begun.to(dtype, copy=True)
        origin = before if start_of is None else begun.clone()
        exact = apply(begun, part)
        after = rounded[:count].copy_(exact)
        _write_rows(after, output.target, part, target)
        weights += after.numel()
        changed += _count_different(start_rows, after)
        if square is None:
            update += _squared_distance(exact, origin)
        error += _squared_distance(exact, after, ours=exact.data_ptr() == weight.data_ptr())
        # In float32: two bfloat16 weights have a difference that bfloat16 does not hold.
        stored_change = difference[:count].copy_(after).sub_(origin).view(-1)
        moved += float(stored_change.dot(stored_change))
    # A weight that is not finite makes both sums so; they may also just be too large.
    if not math.isfinite(update + error + moved):
        broken = not _is_finite(output.target, rows, target)
        raise ParityError(
            f"{output.name} is not finite as {dtype}; the training diverged (look at its loss)"
            + (", or float16 overflowed: use bfloat16" if dtype == torch.float16 else "")
            if broken
            else f"{output.name}: the adapter moves it by more than the norm of a float32 tensor "
            "can be; the training diverged (look at its loss)"
        )
    if output.update is None or not output.update.adapted:
        return None
    return output.name, Change(update, error, moved, changed, weights)


def _squared_distance(a: "torch.Tensor", b: "torch.Tensor", *, ours: bool = False) -> float:
    """Squared norm of a - b; where `a` is ours to overwrite it is worked out in its memory."""
    flat = (a.sub_(b) if ours else a - b).view(-1)
    return float(flat.dot(flat))


def _is_finite(header: TensorHeader, rows: slice, file: int) -> bool:
    """Look at rows that were written."""
    import torch

    shape = (rows.stop - rows.start, *header.shape[1:])
    written = torch.empty(shape, dtype=getattr(torch, TORCH_NAMES[header.dtype]))
    return bool(_read_rows(written, header, rows, file).isfinite().all())


def _count_different(before: "torch.Tensor", after: "torch.Tensor") -> int:
    import numpy as np
    import torch

    if before.dtype == after.dtype:
        # As integers and in numpy: torch compares 16-bit floats ten times slower.
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[before.dtype.itemsize]
        pair = before.view(whole).numpy(), after.view(whole).numpy()
        return int(np.count_nonzero(np.not_equal(*pair)))
    return int((after != before).count_nonzero())


def _read_rows(
    into: "torch.Tensor", header: TensorHeader, rows: slice, file: int
) -> "torch.Tensor":
    """Read rows of a tensor; those past its end are zero."""
    position, count = _extent(header, rows)
    data = _bytes_of(into)
    data[count:] = bytes(len(data) - count)
    data = data[:count]
    while data:
        done = os.preadv(file, [data], position)
        if not done:
            raise ArtifactError("a weights file got shorter while it was read; copy it anew")
        data, position = data[done:], position + done
    return into


def _write_rows(rows: "torch.Tensor", header: TensorHeader, part: slice, file: int) -> None:
    position, _ = _extent(header, part)
    data = _bytes_of(rows)
    while data:
        done = os.pwrite(file, data, position)
        data, position = data[done:], position + done


def _extent(header: TensorHeader, rows: slice) -> tuple[int, int]:
    """Return where rows begin in the file, and how many bytes of them it holds."""
    stored = header.shape[0] if header.shape else 1
    row_bytes = (header.end - header.start) // max(1, stored)
    count = max(0, min(rows.stop, stored) - rows.start)
    return header.start + rows.start * row_bytes, count * row_bytes


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    import torch

    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def item_bytes(kind: str) -> int:
    """Return the bytes of one number of a safetensors dtype, e.g. 2 for BF16."""
    import torch

    return int(getattr(torch, TORCH_NAMES[kind]).itemsize)
