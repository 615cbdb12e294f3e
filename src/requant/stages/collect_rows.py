"""collect_rows: the rows of all sources that no night of the line has read before."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from requant.collecting.read import Read, read_source
from requant.collecting.rendering import render_faults
from requant.config.collecting import CollectRows
from requant.config.sources import RowSource, field_of
from requant.data.chat_template import write_rules
from requant.data.faults import Fault, listed
from requant.data.sources import rules_of
from requant.errors import ContractError
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import worded
from requant.ledger.index import index_at
from requant.ledger.keys import content_keys, occurrence_keys, raw_keys
from requant.ledger.rows import (
    ROWS,
    Card,
    CollectedRow,
    SourceCount,
    grouped,
    write_card,
    write_rows,
)
from requant.ledger.verdicts import seen_before
from requant.ledger.words import Flags, Keys
from requant.models.tokenizer import load_tokenizer
from requant.store import Store, materialise
from requant.store.lines import read_line
from requant.store.objects import read_manifest
from requant.wording import few, printable

Seen = Callable[[Keys], Flags]
"""Of occurrences, uint64 [rows], which an earlier night has read, bool [rows]."""
BATCH_ROWS = 4096
"""Rows that are looked up at once."""
FEW_BAD = 4
"""So many bad rows say nothing of a source, however few the others are."""
EXCERPT_BYTES = 300


@dataclass
class Tally:
    """What is counted of a source while it is read."""

    known: int = 0
    new: int = 0
    bad: list[Fault] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        return self.known + self.new


def execute(
    section: CollectRows, context: StageContext, *, base: Path, ledger: Path | None = None
) -> Metrics:
    """Read every source, leave out what a night has read at its place, and say which rows are bad.

    Also written down is what came of earlier nights by now: with it, what follows is a function of
    its inputs alone.

    Args:
        section: Sources, and how their rows are read and rendered.
        context: Of the stage; its store holds the ledgers of the line.
        base: Model artifact whose tokenizer must take every row.
        ledger: Of the last night; None in the first.

    Returns:
        read_rows, known_rows (of them), new_rows and bad_rows (of these).

    Raises:
        ContractError: If more of a source's new rows are bad than `max_bad_share`, or the chat
            template can render none; then nothing is taken, and the next run reads anew.
        ConfigError: If a source does not exist.
        TransientError: If a source cannot be reached.
    """
    assert context.store is not None
    line = read_line(context.store, context.line)
    seen = _seen_by(context.store, ledger)
    tokenizer = cache(lambda: load_tokenizer(base))
    tallies: dict[str, Tally] = {}

    def rows() -> Iterator[CollectedRow]:
        left, unread = section.max_new_rows, []
        for source in section.sources:
            if not left:
                unread.append(source.name)
                continue
            tally = tallies.setdefault(source.name, Tally())
            found = new_rows(section, source, context.work, seen, tokenizer, tally)
            for row in islice(found, left):
                left -= 1
                yield row
            _refuse_broken(source, tally, section.max_bad_share)
            for text in _said(source, tally):
                context.reporter.message(text)
        if not left:
            beyond = f"; not looked at: {few(unread)}" if unread else ""
            context.reporter.message(
                f"collect_rows.max_new_rows={section.max_new_rows} new rows are read; what the "
                f"sources have beyond them is for later nights{beyond}"
            )

    written = write_rows(context.out / ROWS, rows())
    write_rules(context.out, rules_of(section))
    outcomes = {night: outcome.verdict for night, outcome in sorted(line.nights.items())}
    counts = {name: _count(tally) for name, tally in tallies.items()}
    write_card(context.out, Card(sources=counts, outcomes=outcomes))
    return {
        "read_rows": float(sum(tally.read for tally in tallies.values())),
        "known_rows": float(sum(tally.known for tally in tallies.values())),
        "new_rows": float(written),
        "bad_rows": float(sum(len(tally.bad) for tally in tallies.values())),
    }


def new_rows(
    section: CollectRows,
    source: RowSource,
    work: Path,
    seen: Seen,
    tokenizer: Callable[[], Any],
    tally: Tally,
) -> Iterator[CollectedRow]:
    """Yield the rows of a source that were not read at their place before, the bad ones marked.

    Args:
        section: How rows are read and rendered.
        source: One of its sources.
        work: Folder for copies of remote files.
        seen: Tells which occurrences are known.
        tokenizer: Loads it: not for a source that has nothing new.
        tally: Counts what is read.
    """
    every = read_source(source, section.columns, work / "copies", tally.remarks.append)
    places = Places(source.name)
    for group in grouped(every, BATCH_ROWS):
        reads = [_strict(read) for read in group] if section.unknown_fields == "refuse" else group
        contents = _contents(reads)
        occurrences = occurrence_keys(contents, places.of(reads, contents))
        known = seen(occurrences)
        if known.all():
            tally.known += len(reads)
            continue
        fresh = (read for read, is_known in zip(reads, known, strict=True) if not is_known)
        rendered = render_faults(tokenizer(), rules_of(section), None, fresh)
        # Counted one by one: the night may have enough in the middle.
        for at in range(len(reads)):
            if known[at]:
                tally.known += 1
                continue
            read = next(rendered)
            tally.new += 1
            tally.ignored.update(read.ignored)
            if read.row is None:
                # Nothing is a duplicate of what nobody can read.
                contents[at] = raw_keys([read.raw])[0]
                tally.bad.append(
                    Fault(f"{read.source}: {read.place}", "bad rows", read.reason, False)
                )
            else:
                tally.formats[read.format] += 1
            yield CollectedRow(
                source=read.source,
                place=read.place,
                row=read.row,
                reason=read.reason,
                excerpt="" if read.row else _excerpt(read.raw),
                content=(int(contents[at, 0]), int(contents[at, 1])),
                occurrence=int(occurrences[at]),
            )


@dataclass
class Places:
    """Tells the rows of a source apart by what they say and where: file, and which of its like.

    Not by their line: a log that loses its first lines, or a query without an order, would have
    all its rows at new places every night.
    """

    source: str
    file: str = ""
    met: Counter[bytes] = field(default_factory=Counter)
    """Content -> how many rows of the file had it."""

    def of(self, reads: Iterable[Read], contents: Keys) -> Iterator[str]:
        """Yield the place of each row, in the order in which they are read."""
        for read, content in zip(reads, contents, strict=True):
            # Rows of a query have a number alone; a file that cannot be read is its own place.
            numbered = re.fullmatch(r"row \d+", read.place)
            file = "" if numbered else read.place.rpartition(", ")[0] or read.place
            if file != self.file:
                self.file, self.met = file, Counter()
            key = content.tobytes()
            self.met[key] += 1
            yield f"{self.source}\0{file}\0{self.met[key]}"


def _seen_by(store: Store, ledger: Path | None) -> Seen:
    """Return what tells of occurrences which of them an earlier night has read."""
    if ledger is None:
        return lambda occurrences: np.zeros(len(occurrences), bool)
    index = index_at(ledger, read_manifest(ledger).digest)
    return partial(seen_before, index, partial(materialise, store))


def _strict(read: Read) -> Read:
    if not read.ignored:
        return read
    reason = (
        f"{', '.join(read.ignored)}: nothing reads this; remove it, or set "
        "collect_rows.unknown_fields=list"
    )
    return replace(read, row=None, reason=reason)


def _contents(reads: list[Read]) -> Keys:
    """Key what rows say, and of the bad ones their bytes: uint64 [rows, 2]."""
    keys = np.empty((len(reads), 2), np.uint64)
    good = [index for index, read in enumerate(reads) if read.row is not None]
    bad = [index for index, read in enumerate(reads) if read.row is None]
    keys[good] = content_keys([row for read in reads if (row := read.row) is not None])
    keys[bad] = raw_keys([reads[index].raw for index in bad])
    return keys


def _refuse_broken(source: RowSource, tally: Tally, share: float) -> None:
    bad = len(tally.bad)
    if bad > FEW_BAD and bad > share * tally.new:
        raise ContractError(
            "\n".join(
                [
                    f"{field_of(source)}: {bad} of {tally.new} new rows are bad, more than "
                    f"collect_rows.max_bad_share={share:g}: the source is broken, and no row of it "
                    "is taken; mend it, or raise the share",
                    *listed(tally.bad),
                ]
            )
        )


def _said(source: RowSource, tally: Tally) -> Iterator[str]:
    yield from tally.remarks
    formats = "; ".join(f"{count} {name}" for name, count in tally.formats.most_common())
    yield (
        f"{source.name}: {tally.read} rows, {tally.known} known at their place, {tally.new} new"
        + (f": {formats}" if formats else "")
    )
    if tally.ignored:
        listing = ", ".join(
            f"{name} ({count} rows)" for name, count in sorted(tally.ignored.items())
        )
        yield f"{source.name}: not read: {listing}"
    yield from (f"quarantined: {line}" for line in listed(tally.bad))


def _count(tally: Tally) -> SourceCount:
    return SourceCount(
        read=tally.read,
        known=tally.known,
        bad=len(tally.bad),
        formats=dict(sorted(tally.formats.items())),
        ignored=dict(sorted(tally.ignored.items())),
    )


def _excerpt(raw: bytes) -> str:
    return printable(raw[:EXCERPT_BYTES].decode(errors="replace"))


STAGE = Stage(
    name="collect_rows",
    version=1,
    kind="dataset",
    libraries=("pyarrow", "transformers", "tokenizers"),
    execute=execute,
    reads_anew=True,
    artifact="rows",
    headline=(worded("{} rows, {} of them new", "read_rows", "new_rows"),),
)
