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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from requant.errors import ArtifactError, ContractError
from requant.merging.change import Change
from requant.merging.rows import Output, item_bytes, merge_rows, unchanged
from requant.merging.updates import Update
from requant.models.headers import (
    SAFETENSORS_NAMES,
    TORCH_NAMES,
    ShardHeader,
    read_shard_header,
    weight_files,
)

BLOCK_WEIGHTS = 1 << 18
"""1 MiB in float32: a block and its three temporaries stay in a core's second-level cache."""

BLOCKS_PER_JOB = 8
"""Blocks of a job go through the same memory: fresh pages for each would cost as much as the
arithmetic."""

COPY_BYTES = 16 << 20
"""Bytes copied per call to the kernel; small enough that the cores share a large tensor."""

QUEUED_PER_CORE = 4
"""Blocks that wait: enough that no core is idle, few enough that memory does not grow."""


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
) -> tuple[list[Output], bytes]:
    """Lay a shard out anew; where no tensor changes its size, its header is the original's."""
    sources = dict(header.tensors)
    sources |= {name: sources[twin] for name, twin in added.items() if twin in sources}
    outputs: list[Output] = []
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
            size = math.prod(shape) * item_bytes(kind)
        target = replace(source, dtype=kind, shape=shape, start=end, end=end + size)
        outputs.append(Output(name, source, target, update))
        end += size
    text = _header_bytes(header, outputs)
    shift = len(text)
    shifted = [
        replace(o, target=replace(o.target, start=o.target.start + shift, end=o.target.end + shift))
        for o in outputs
    ]
    return shifted, text


def _header_bytes(header: ShardHeader, outputs: Sequence[Output]) -> bytes:
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


def _jobs(outputs: Iterable[Output], source: int, target: int) -> Iterator[Job]:
    # Of tensors that must be seen whole one at a time: each takes several times its size.
    alone = threading.Lock()
    for output in outputs:
        if output.update is None and output.source.dtype == output.target.dtype:
            yield from _copies(output, source, target)
            continue
        update = output.update
        apply = update.open() if update else unchanged
        start_of = update.open_start() if update and update.open_start else None
        square = update.open_square() if update and update.open_square else None
        rows, *others = output.target.shape or (1,)
        by_rows = update is None or update.by_rows
        step = max(1, BLOCK_WEIGHTS // max(1, math.prod(others))) if by_rows else rows
        for start in range(0, rows, step * BLOCKS_PER_JOB):
            part = slice(start, min(start + step * BLOCKS_PER_JOB, rows))
            job = partial(
                merge_rows, output, start_of, apply, square, part, min(step, rows), source, target
            )
            yield job if by_rows else partial(_holding, alone, job)


def _holding(lock: threading.Lock, job: Job) -> tuple[str, Change] | None:
    with lock:
        return job()


def _copies(output: Output, source: int, target: int) -> Iterator[Job]:
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
