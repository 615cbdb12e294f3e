"""Give disk back: artifacts nothing refers to, and what crashes left behind."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from requant.errors import TransientError
from requant.store.layout import Store
from requant.store.locks import acquire
from requant.store.objects import write_durably
from requant.store.records import StageRecord, all_records, last_used


@dataclass(frozen=True)
class Garbage:
    """What a collection would delete."""

    records: tuple[Path, ...]
    folders: tuple[Path, ...]
    bytes: int
    """Of the folders."""

    @property
    def in_words(self) -> str:
        """How much it is, for people."""
        size = f"{self.bytes / 2**20:.1f} MiB"
        return f"{len(self.folders)} folders ({size}), {len(self.records)} records"


def find_garbage(store: Store, keep: int | None = None) -> Garbage:
    """List what can go.

    Args:
        store: The store.
        keep: Records used last that are kept for each pipeline and stage, and what is pinned, with
            all that they were made from; None keeps every record.
    """
    records = all_records(store)
    pins = pinned_digests(store)
    pinned = [record for record in records if record.digest in pins]
    kept = (
        records
        if keep is None
        else _with_ancestors(records, [*_used_last(store, records, keep), *pinned])
    )
    kept_keys = {record.key for record in kept}
    # A forced stage may have taken the record of a pinned artifact for new bytes.
    digests = {record.digest for record in kept} | pins
    done = {record.key for record in records}
    folders = [path for path in store.objects.glob("*/*") if path.name not in digests]
    folders += store.tmp.glob("*")
    folders += [path for path in store.work_path("x").parent.glob("*") if path.name in done]
    return Garbage(
        records=tuple(store.record_path(key) for key in sorted(done - kept_keys)),
        folders=tuple(sorted(folders)),
        bytes=sum(_size(folder) for folder in folders),
    )


def collect(store: Store, keep: int | None = None) -> Garbage:
    """Delete what `find_garbage` lists, while no night runs.

    Raises:
        TransientError: If a night is running now; it may be about to read what looks unused.
    """
    descriptor = acquire(store.use_lock, timeout=0)
    if descriptor is None:
        raise TransientError(f"{store.root}: a night is running; collect garbage when it is done")
    try:
        garbage = find_garbage(store, keep)
        for record in garbage.records:
            record.unlink()
        for folder in garbage.folders:
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)
    return garbage


def pin(store: Store, name: str, digest: str) -> None:
    """Keep an artifact, and what it was made from, from every collection.

    Args:
        store: The store.
        name: Who needs it; a new pin of the same name takes the place of the old one.
        digest: The artifact.
    """
    write_durably(store.pin_path(name), digest.encode())


def pinned_digests(store: Store) -> set[str]:
    """Return the artifacts that somebody has pinned."""
    return {path.read_text() for path in store.pin_path("x").parent.glob("[!.]*")}


def _used_last(store: Store, records: list[StageRecord], keep: int) -> list[StageRecord]:
    groups: dict[tuple[str, str], list[StageRecord]] = {}
    for record in sorted(records, key=lambda record: last_used(store, record)):
        groups.setdefault((record.labels.get("pipeline", ""), record.stage), []).append(record)
    return [record for group in groups.values() for record in group[-keep:]]


def _with_ancestors(records: list[StageRecord], roots: Iterable[StageRecord]) -> list[StageRecord]:
    makers: dict[str, list[StageRecord]] = {}
    for record in records:
        makers.setdefault(record.digest, []).append(record)
    kept: dict[str, StageRecord] = {}
    queue = list(roots)
    while queue:
        record = queue.pop()
        if record.key not in kept:
            kept[record.key] = record
            for digest in record.key_fields.get("inputs", {}).values():
                queue += makers.get(digest, [])
    return list(kept.values())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
