"""Give disk back: artifacts nothing refers to, and what crashes left behind."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from requant.errors import ArtifactError, TransientError
from requant.store.answers import answer_notes, read_kept
from requant.store.attempts import Attempt, all_attempts, in_progress, in_words
from requant.store.layout import Store
from requant.store.lines import needed_by_lines
from requant.store.locks import Say, acquire, holder_of, is_held
from requant.store.pins import read_pins
from requant.store.records import StageRecord, last_used, read_records
from requant.wording import data_size

WRITING_SECONDS = 3600.0
"""A small document takes milliseconds; who writes one may hold no lock a collection asks for."""


@dataclass(frozen=True)
class Garbage:
    """What a collection would delete."""

    records: tuple[Path, ...]
    """And notes of what models answered that are gone."""
    folders: tuple[Path, ...]
    bytes: int
    """Size of the folders."""
    strange: tuple[Path, ...] = ()
    """What requant did not put there, links above all: it is left alone."""
    torn: tuple[Path, ...] = ()
    """Drafts of small documents, whose writer was killed before it was done."""
    in_use: tuple[str, ...] = ()
    """Nights and stages that run now, in words: what they work in is not garbage."""
    held_back: tuple[str, ...] = ()
    """Why no artifact and no record is garbage: what cannot be believed, each with a way out."""

    @property
    def in_words(self) -> str:
        """How much it is, for people."""
        torn = f", {len(self.torn)} torn documents" if self.torn else ""
        folders = f"{len(self.folders)} folders ({data_size(self.bytes)})"
        return f"{folders}, {len(self.records)} records{torn}"

    @property
    def doubt(self) -> str:
        """What the documents that cannot be believed have kept; empty where there are none."""
        if not self.held_back:
            return ""
        return (
            f"{len(self.held_back)} records, pins or heads of lines cannot be believed, and nobody "
            "knows what they name: every artifact and record is kept until they are mended or "
            "removed"
        )


def find_garbage(store: Store, keep: int | None = None) -> Garbage:
    """List what can go.

    What a record or a pin that cannot be believed names nobody knows, nor what that was made from:
    while there is one no artifact and no record is garbage, only what crashes left behind.

    Args:
        store: The store.
        keep: Records used last that are kept for each pipeline and stage, the models of as many
            accepted nights of each line, and what is pinned, with all that they were made from;
            None keeps every record.
    """
    # Looked at first: what is made from here on is not among them.
    shelves, strange = _folders(store.objects, "[0-9a-f]{2}")
    found: list[Path] = []
    for shelf in shelves:
        artifacts, others = _folders(shelf, f"{shelf.name}[0-9a-f]{{62}}")
        found += artifacts
        strange += others
    scratch, others = _folders(store.work_path("x").parent, "[0-9a-f]{64}")
    drafts, more = _folders(store.tmp, "[0-9a-f]{64}-.*|(discarded|answers)-.*")
    strange += [*others, *more]
    running = {item.key: item for item in all_attempts(store) if in_progress(store, item.key)}
    records, no_records = read_records(store)
    found_pins, no_pins = read_pins(store)
    in_lines, no_lines = needed_by_lines(store, keep or 0)
    held_back = (*no_pins, *no_lines, *no_records)
    pins = {*found_pins.values(), *in_lines}
    pinned = [record for record in records if record.digest in pins]
    kept = (
        records
        if keep is None or held_back
        else _with_ancestors(records, [*_used_last(store, records, keep), *pinned])
    )
    kept_keys = {record.key for record in kept}
    # A forced stage may have taken the record of a pinned artifact for new bytes.
    digests = {record.digest for record in kept} | pins
    answers, idle = _answers(store, digests)
    digests |= answers
    done = {record.key for record in records}
    folders = [] if held_back else [path for path in found if path.name not in digests]
    folders += [*drafts, *(path for path in scratch if path.name in done)]
    folders = [path for path in folders if path.exists() and not _in_use(path, running)]
    return Garbage(
        records=(*(store.record_path(key) for key in sorted(done - kept_keys)), *idle),
        folders=tuple(sorted(folders)),
        bytes=sum(_size(folder) for folder in folders),
        strange=tuple(sorted(strange)),
        torn=tuple(_torn(store)),
        in_use=in_use(store, running.values()),
        held_back=held_back,
    )


def _folders(parent: Path, pattern: str) -> tuple[list[Path], list[Path]]:
    """List the folders of requant's names in a folder, and what else lies there.

    A link is none of its folders: what it leads to is not the store's to delete.
    """
    if parent.is_symlink():
        return [], [parent]
    entries = sorted(parent.iterdir()) if parent.is_dir() else []
    ours = [
        path
        for path in entries
        if re.fullmatch(pattern, path.name) and path.is_dir() and not path.is_symlink()
    ]
    return ours, [path for path in entries if path not in ours]


def _answers(store: Store, digests: Set[str]) -> tuple[set[str], list[Path]]:
    """Split what models answered: artifacts whose models are kept, and notes nobody needs.

    A note that cannot be believed saves nobody any time.
    """
    kept, idle = set(), []
    for path in answer_notes(store):
        try:
            note = read_kept(store, path)
        except FileNotFoundError:
            continue
        except ArtifactError:
            idle.append(path)
            continue
        if digests >= set(note.of["inputs"].values()):
            kept.add(note.digest)
        else:
            idle.append(path)
    return kept, idle


def _torn(store: Store) -> Iterator[Path]:
    """Find what `write_durably` was killed over."""
    longest_ago = time.time() - WRITING_SECONDS
    attempts, results = store.attempt_path("x").parent, store.results_path()
    answers = store.answers_path("x").parent
    documents = (store.actions, store.lines, store.pins, store.deployments)
    for folder in (*documents, answers, attempts, results):
        for path in sorted(folder.glob(".*")):
            ours = re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name) and path.is_file()
            if ours and not path.is_symlink() and path.stat().st_mtime < longest_ago:
                yield path


def collect(
    store: Store,
    keep: int | None = None,
    *,
    timeout: float = 0.0,
    say: Say | None = None,
    before: Callable[[Garbage], None] = lambda garbage: None,
) -> Garbage:
    """Delete what `find_garbage` lists, while no night runs.

    Args:
        store: The store.
        keep: As `find_garbage` takes it.
        timeout: Seconds to wait for a night to end.
        say: Is told for whom it waits, with growing pauses.
        before: Is told what goes before the first of it does.

    Raises:
        TransientError: If a night is running still; it may be about to read what looks unused.
    """

    def waits(_: str) -> None:
        # The lock is shared by those who use the store: its file cannot name them all.
        if say is not None:
            say(f"garbage is collected when nobody uses {store.root}; now: {users(store)}")

    descriptor = acquire(store.use_lock, timeout, what="garbage collection", say=waits)
    if descriptor is None:
        raise TransientError(
            f"{store.root}: is used by {users(store)}; nothing was deleted. Collect garbage when "
            "that is done; `requant gc --dry-run` lists what could go"
        )
    try:
        garbage = find_garbage(store, keep)
        before(garbage)
        for path in (*garbage.records, *garbage.torn):
            path.unlink(missing_ok=True)
        for folder in garbage.folders:
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)
    return garbage


def in_use(store: Store, running: Iterable[Attempt]) -> tuple[str, ...]:
    """Name the nights in progress, and the stages among the attempts given, in words."""
    holders = (str(holder_of(path) or path.name) for path in held_nights(store))
    stages = (f"{attempt.stage} {in_words(store, attempt)}" for attempt in running)
    return (*holders, *stages)


def held_nights(store: Store) -> list[Path]:
    """List the lock files of the nights in progress."""
    return [path for path in sorted(store.night_lock("").parent.glob("night-*")) if is_held(path)]


def users(store: Store) -> str:
    """Name who uses a store now."""
    running = [item for item in all_attempts(store) if in_progress(store, item.key)]
    return "; ".join(in_use(store, running)) or "a process that has not said what it does"


def _in_use(path: Path, running: Mapping[str, Attempt]) -> bool:
    """Tell whether a running stage made a folder, or may have made it."""
    key, _, _ = path.name.partition("-")
    if key in running:
        return True
    # What has no record may be about to get one.
    return any(path.stat().st_ctime >= attempt.started for attempt in running.values())


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
    return sum(path.lstat().st_size for path in folder.rglob("*"))
