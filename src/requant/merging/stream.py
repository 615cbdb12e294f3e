"""Write a merged model shard by shard: blocks that fit the cache, read, merged and written at once.

Of a model of any size a few blocks are in memory. What no update touches is copied by the kernel.
"""

import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ArtifactError, ContractError, ParityError
from requant.merging.updates import Apply, Update
from requant.models.headers import (
    SAFETENSORS_NAMES,
    TORCH_NAMES,
    ShardHeader,
    TensorHeader,
    read_shard_header,
    weight_files,
)

if TYPE_CHECKING:
    import torch

BLOCK_WEIGHTS = 1 << 18
"""1 MiB in float32: a block and its three temporaries stay in a core's second-level cache."""
BLOCKS_PER_JOB = 8
"""They go through the same memory: fresh pages for each would cost as much as the arithmetic."""
COPY_BYTES = 16 << 20
"""Per call to the kernel; small enough that the cores share a large tensor."""
QUEUED_PER_CORE = 4
"""Blocks that wait: enough that no core is idle, few enough that memory does not grow."""


@dataclass(frozen=True)
class Change:
    """What merging did to one tensor, or to a part of it."""

    update: float = 0.0
    """Squared norm of what the adapter adds, before rounding."""
    error: float = 0.0
    """Squared norm of what rounding takes from it."""
    moved: float = 0.0
    """Squared norm of what is stored less what it starts from."""
    changed: int = 0
    """Weights that are another number than in the model merged into, as it would be stored."""
    weights: int = 0

    def __add__(self, other: "Change") -> "Change":
        return Change(
            self.update + other.update,
            self.error + other.error,
            self.moved + other.moved,
            self.changed + other.changed,
            self.weights + other.weights,
        )

    @property
    def rounding_ratio(self) -> float:
        """Norm of the rounding error over the norm of the update; 0 without an update."""
        return float((self.error / self.update) ** 0.5) if self.update else 0.0

    @property
    def kept_share(self) -> float:
        """Share of the update that is still there after rounding; 1 without an update.

        <M - W, D> / ||D||^2 of start W, update D and stored M, by polarization from the three
        norms. Rounding to nearest drops what is below half a step of the dtype, so it may be far
        below 1: it is no unbiased noise.
        """
        return (self.moved + self.update - self.error) / (2 * self.update) if self.update else 1.0

    @property
    def noise_ratio(self) -> float:
        """Norm of the part of the rounding error that is orthogonal to the update, over its norm.

        0 without an update.
        """
        return float(max(0.0, self.rounding_ratio**2 - (1 - self.kept_share) ** 2) ** 0.5)

    @property
    def changed_share(self) -> float:
        """Share of the weights that changed, 0 to 1."""
        return self.changed / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class _Output:
    """One tensor as it will be written."""

    name: str
    source: TensorHeader
    target: TensorHeader
    update: Update | None


def write_merged(
    base: Path,
    updates: Mapping[str, Update],
    out: Path,
    *,
    dtype: str | None = None,
    added: Mapping[str, str] | None = None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Change]:
    """Write the weights of `base` to `out` with the updates in them.

    Shards keep their names, the order and dtypes of their tensors and their metadata. Accumulated
    in float32, rounded once. On the disk when it returns.

    Args:
        base: Model folder with *.safetensors.
        updates: Tensor name to update; every name is in `base` or in `added`.
        out: Existing folder.
        dtype: torch name of the floating dtype to write; None keeps each tensor's own, and then
            tensors without an update are bit for bit the same.
        added: New tensor to the tensor of `base` it starts from; it is written beside that one.
        on_shard: Told of (shards written, shards) after each one.

    Returns:
        Updated tensor to what changed in it.

    Raises:
        ContractError: If a tensor to be updated is not floating-point.
        ParityError: If a merged weight is not finite.
    """
    import torch

    shards = weight_files(base)
    cores = os.cpu_count() or 1
    changes: dict[str, Change] = {}
    threads = torch.get_num_threads()
    # One thread a block, and one here: OpenMP's threads would spin where blocks are merged.
    torch.set_num_threads(1)
    try:
        with (
            ThreadPoolExecutor(1) as disk,
            ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1)) as pool,
        ):
            settled = []
            for done, shard in enumerate(shards, start=1):
                outputs, header = _plan(read_shard_header(shard), updates, dtype, added or {})
                with shard.open("rb") as source, (out / shard.name).open("wb+") as target:
                    target.write(header)
                    target.flush()
                    jobs = _jobs(outputs, source.fileno(), target.fileno())
                    for name, change in _in_pool(pool, jobs, cores * QUEUED_PER_CORE):
                        changes[name] = changes.get(name, Change()) + change
                # On its way to the disk while the next one is merged.
                settled.append(disk.submit(_settle, out / shard.name))
                on_shard(done, len(shards))
            for future in settled:
                future.result()
    finally:
        # MKL's part of the setting is the whole process's.
        torch.set_num_threads(threads)
    return changes


def _settle(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _plan(
    header: ShardHeader,
    updates: Mapping[str, Update],
    dtype: str | None,
    added: Mapping[str, str],
) -> tuple[list[_Output], bytes]:
    """Lay a shard out anew; where no tensor changes its size, its header is the original's."""
    sources = dict(header.tensors)
    sources |= {name: sources[twin] for name, twin in added.items() if twin in sources}
    outputs: list[_Output] = []
    end = 0
    for name, source in sources.items():
        update = updates.get(name)
        if update is not None and source.dtype not in TORCH_NAMES:
            raise ContractError(
                f"{source.file}: {name} is {source.dtype}, which cannot be merged into; expected "
                f"one of {', '.join(TORCH_NAMES)}"
            )
        floating = source.dtype in TORCH_NAMES
        kind = SAFETENSORS_NAMES[dtype] if dtype and floating else source.dtype
        shape = update.shape if update else source.shape
        size = source.end - source.start
        if (kind, shape) != (source.dtype, source.shape):
            size = math.prod(shape) * _item_bytes(kind)
        target = replace(source, dtype=kind, shape=shape, start=end, end=end + size)
        outputs.append(_Output(name, source, target, update))
        end += size
    text = _header_bytes(header, outputs)
    shift = len(text)
    shifted = [
        replace(o, target=replace(o.target, start=o.target.start + shift, end=o.target.end + shift))
        for o in outputs
    ]
    return shifted, text


def _header_bytes(header: ShardHeader, outputs: Sequence[_Output]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": header.metadata} if header.metadata else {}
    entries |= {
        o.name: {
            "dtype": o.target.dtype,
            "shape": list(o.target.shape),
            "data_offsets": [o.target.start, o.target.end],
        }
        for o in outputs
    }
    if entries == header.entries:
        return header.raw
    text = json.dumps(entries, separators=(",", ":")).encode()
    # The format asks for data aligned to eight bytes; spaces are its filler.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


Job = Callable[[], tuple[str, Change] | None]


def _jobs(outputs: Iterable[_Output], source: int, target: int) -> Iterator[Job]:
    # Of tensors that must be seen whole one at a time: each takes several times its size.
    alone = threading.Lock()
    for output in outputs:
        if output.update is None and output.source.dtype == output.target.dtype:
            yield from _copies(output, source, target)
            continue
        update = output.update
        apply = update.open() if update else _unchanged
        start_of = update.open_start() if update and update.open_start else None
        square = update.open_square() if update and update.open_square else None
        rows, *others = output.target.shape or (1,)
        by_rows = update is None or update.by_rows
        step = max(1, BLOCK_WEIGHTS // max(1, math.prod(others))) if by_rows else rows
        for start in range(0, rows, step * BLOCKS_PER_JOB):
            part = slice(start, min(start + step * BLOCKS_PER_JOB, rows))
            job = partial(
                _merge_rows, output, start_of, apply, square, part, min(step, rows), source, target
            )
            yield job if by_rows else partial(_holding, alone, job)


def _holding(lock: threading.Lock, job: Job) -> tuple[str, Change] | None:
    with lock:
        return job()


def _copies(output: _Output, source: int, target: int) -> Iterator[Job]:
    for start in range(output.source.start, output.source.end, COPY_BYTES):
        count = min(COPY_BYTES, output.source.end - start)
        position = output.target.start + start - output.source.start
        yield partial(_copy, source, start, target, position, count)


def _copy(source: int, start: int, target: int, position: int, count: int) -> None:
    while count:
        try:
            done = os.copy_file_range(source, target, count, start, position)
        except OSError:
            # Not between all filesystems.
            done = os.pwrite(target, os.pread(source, min(count, COPY_BYTES), start), position)
        if not done:
            raise ArtifactError("a weights file got shorter while it was read; copy it anew")
        start, position, count = start + done, position + done, count - done


def _unchanged(weight: "torch.Tensor", rows: slice) -> "torch.Tensor":
    return weight


def _merge_rows(
    output: _Output,
    start_of: Apply | None,
    apply: Apply,
    square: Callable[[slice], float] | None,
    rows: slice,
    step: int,
    source: int,
    target: int,
) -> tuple[str, Change] | None:
    """Merge some rows, a block of `step` of them at a time through the same memory."""
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


def _item_bytes(kind: str) -> int:
    import torch

    return int(getattr(torch, TORCH_NAMES[kind]).itemsize)


def _in_pool(
    pool: ThreadPoolExecutor, jobs: Iterable[Job], queued: int
) -> Iterator[tuple[str, Change]]:
    """Run jobs in order of their start, a bounded number of them begun at a time."""
    pending: deque[Future[tuple[str, Change] | None]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) >= queued and (result := pending.popleft().result()):
                yield result
        while pending:
            if result := pending.popleft().result():
                yield result
    finally:
        for future in pending:
            future.cancel()
        # What runs still uses the files.
        wait(pending)
