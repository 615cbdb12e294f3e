"""Write a merged model shard by shard: blocks that fit the cache, read, merged and written at once.

Of a model of any size a few blocks are in memory. What no update touches is copied by the kernel.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError, ParityError
from requant.merging.updates import Apply, Update
from requant.weights import ShardHeader, TensorHeader, read_shard_header

if TYPE_CHECKING:
    import torch

BLOCK_WEIGHTS = 1 << 18
"""1 MiB in float32: a block and its three temporaries stay in a core's second-level cache."""
COPY_BYTES = 16 << 20
"""Per call to the kernel; small enough that the cores share a large tensor."""
QUEUED_PER_CORE = 4
"""Blocks that wait: enough that no core is idle, few enough that memory does not grow."""

TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes that can be merged into."""
SAFETENSORS_NAMES = {name: short for short, name in TORCH_NAMES.items()}


@dataclass(frozen=True)
class Change:
    """What merging did to one tensor, or to a part of it."""

    update: float = 0.0
    """Squared norm of what the adapter adds, before rounding."""
    error: float = 0.0
    """Squared norm of what rounding takes from it."""
    changed: int = 0
    """Weights that are another number than in the original."""
    weights: int = 0

    def __add__(self, other: "Change") -> "Change":
        return Change(
            self.update + other.update,
            self.error + other.error,
            self.changed + other.changed,
            self.weights + other.weights,
        )

    @property
    def rounding_ratio(self) -> float:
        """Norm of the rounding error over the norm of the update; 0 without an update."""
        return float((self.error / self.update) ** 0.5) if self.update else 0.0

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
    in float32, rounded once.

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

    shards = sorted(base.glob("*.safetensors"))
    cores = os.cpu_count() or 1
    changes: dict[str, Change] = {}
    threads = torch.get_num_threads()
    # One thread a block: the cores are kept busy by blocks, and sharing one costs more than it.
    with ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1)) as pool:
        try:
            for done, shard in enumerate(shards, start=1):
                header = read_shard_header(shard)
                outputs, text = _plan(header, updates, dtype, added or {})
                with ExitStack() as files:
                    source = os.open(shard, os.O_RDONLY)
                    files.callback(os.close, source)
                    target = os.open(out / shard.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
                    files.callback(os.close, target)
                    os.write(target, text)
                    jobs = _jobs(outputs, source, target)
                    for name, change in _in_pool(pool, jobs, cores * QUEUED_PER_CORE):
                        changes[name] = changes.get(name, Change()) + change
                on_shard(done, len(shards))
        finally:
            # MKL's part of the setting is the whole process's.
            torch.set_num_threads(threads)
    return changes


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
    for output in outputs:
        if output.update is None and output.source.dtype == output.target.dtype:
            yield from _copies(output, source, target)
            continue
        apply = output.update.open() if output.update else _unchanged
        rows = output.target.shape[0] if output.target.shape else 1
        step = rows
        if output.update is None or output.update.by_rows:
            step = max(1, BLOCK_WEIGHTS // max(1, math.prod(output.target.shape[1:])))
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            yield partial(_merge_rows, output, apply, part, source, target)


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
        start, position, count = start + done, position + done, count - done


def _unchanged(weight: "torch.Tensor", rows: slice) -> "torch.Tensor":
    return weight


def _merge_rows(
    output: _Output, apply: Apply, rows: slice, source: int, target: int
) -> tuple[str, Change] | None:
    import torch

    before = _read_rows(output.source, rows, source)
    weight = before.float()
    exact = apply(weight, rows)
    dtype = getattr(torch, TORCH_NAMES[output.target.dtype])
    after = exact.to(dtype)
    change = _change(before, weight, exact, after)
    if not math.isfinite(change.update + change.error) and not after.isfinite().all():
        raise ParityError(
            f"merge_fp16: {output.name} is not finite after merging into {dtype}; the adapter "
            "diverged or float16 overflowed: look at the training loss, or set "
            "merge_fp16.dtype=bfloat16"
        )
    row_bytes = (output.target.end - output.target.start) // max(1, output.target.shape[0])
    _write(target, after, output.target.start + rows.start * row_bytes)
    return (output.name, change) if output.update else None


def _change(
    before: "torch.Tensor", weight: "torch.Tensor", exact: "torch.Tensor", after: "torch.Tensor"
) -> Change:
    update, error = (exact - weight).flatten(), (exact - after).flatten()
    return Change(
        update=float(update.dot(update)),
        error=float(error.dot(error)),
        changed=int((after != before).count_nonzero()),
        weights=after.numel(),
    )


def _read_rows(header: TensorHeader, rows: slice, file: int) -> "torch.Tensor":
    """Read rows of a tensor; those past its end are zero."""
    import torch

    shape = (rows.stop - rows.start, *header.shape[1:]) if header.shape else ()
    rows_stored = header.shape[0] if header.shape else 1
    tensor = torch.zeros(shape, dtype=getattr(torch, TORCH_NAMES[header.dtype]))
    row_bytes = (header.end - header.start) // max(1, rows_stored)
    position = header.start + rows.start * row_bytes
    count = max(0, min(rows.stop, rows_stored) - rows.start) * row_bytes
    data = memoryview(tensor.view(-1).view(torch.uint8).numpy())[:count]
    while data:
        done = os.preadv(file, [data], position)
        data, position = data[done:], position + done
    return tensor


def _write(file: int, tensor: "torch.Tensor", position: int) -> None:
    import torch

    data = memoryview(tensor.reshape(-1).contiguous().view(torch.uint8).numpy())
    while data:
        done = os.pwrite(file, data, position)
        data, position = data[done:], position + done


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
