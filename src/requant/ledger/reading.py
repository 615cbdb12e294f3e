"""What a person asks of a ledger: how many rows met which fate, which ones, and why."""

from collections.abc import Iterator
from dataclasses import dataclass

from requant.ledger.document import read_decisions, read_night, rows_of
from requant.ledger.fates import Fate, by_fate, resolved
from requant.ledger.nights import ledger_of
from requant.ledger.rows import CollectedRow
from requant.store import Store, materialise
from requant.store.lines import Line, read_line
from requant.store.locks import is_held


@dataclass(frozen=True)
class Status:
    """The rows of a line by the night that read them and their source."""

    night: int
    """The last one; 0 where none has ended or begun."""
    in_progress: bool
    """Its outcome is not known."""
    runs: bool
    """A night of the line runs now."""
    rows: int
    """That the line has read."""
    fates: dict[tuple[int, str], dict[Fate, int]]
    line: Line


@dataclass(frozen=True)
class Shown:
    """A row with its fate."""

    number: int
    night: int
    """That read it."""
    decided_in: int
    row: CollectedRow
    reason: str
    twin: CollectedRow | None
    """The row that it repeats."""


def newest(store: Store, name: str) -> tuple[Line, str | None]:
    """Return the head of a line, and the ledger that knows most of its rows."""
    line = read_line(store, name)
    begun = line.begun.ledger if line.begun else None
    return line, begun or line.ledger


def status(store: Store, name: str) -> Status:
    """Count the rows of a line by fate.

    Raises:
        ArtifactError: If the head of the line cannot be believed, or its ledger is gone.
    """
    line, digest = newest(store, name)
    ledger = ledger_of(store, digest)
    return Status(
        night=ledger.night,
        in_progress=digest != line.ledger,
        runs=is_held(store.night_lock(name)),
        rows=ledger.rows,
        fates=by_fate(ledger.counts, line),
        line=line,
    )


def show(store: Store, name: str, fate: Fate, limit: int) -> Iterator[Shown]:
    """Yield the rows that have a fate now, those that were decided last first.

    Args:
        store: Of the line.
        name: Of the line.
        fate: Which.
        limit: Rows at most.

    Raises:
        ArtifactError: If a ledger or the rows of a night are gone.
    """
    line, digest = newest(store, name)
    if digest is None:
        return
    ledger = ledger_of(store, digest)
    decided_since: set[int] = set()
    left = limit
    for night in range(ledger.night, 0, -1):
        folder = materialise(store, (*ledger.ledgers, digest)[night - 1])
        decisions = [each for each in read_decisions(folder) if each.number not in decided_since]
        decided_since.update(each.number for each in decisions)
        wanted = {
            each.number: each for each in decisions if resolved(each.decided, night, line) == fate
        }
        numbers = sorted(wanted)[:left]
        left -= len(numbers)
        twins = dict(rows_of(store, ledger, {wanted[n].of for n in numbers} - {-1}))
        for number, row in rows_of(store, ledger, numbers):
            yield Shown(
                number=number,
                night=read_night(ledger, number),
                decided_in=night,
                row=row,
                reason=wanted[number].reason,
                twin=twins.get(wanted[number].of),
            )
        if not left:
            return
