"""Rows that wait for a later night, those that wait longest first."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from requant.ledger.document import Ledger, Queued, read_decisions, rows_of
from requant.ledger.rows import CollectedRow
from requant.store import Store, materialise
from requant.store.lines import Verdict


@dataclass(frozen=True)
class Waiting:
    """A row that waits, and where it is counted."""

    number: int
    row: CollectedRow
    queued: Queued


def with_released(before: Ledger, outcomes: Mapping[int, Verdict]) -> Ledger:
    """Return a ledger in which the nights that a person released since wait last.

    Args:
        before: The last ledger.
        outcomes: What came of every night by now.
    """
    new = [
        night
        for night, verdict in sorted(outcomes.items())
        if verdict == "released" and night not in before.released
    ]
    released = {
        night: sum(each.rows for each in before.counts if (each.decided, each.night) == key)
        for night in new
        for key in [("taken", night)]
    }
    queue = (
        *before.queue,
        *(Queued(night=n, decided="taken", rows=rows) for n, rows in released.items() if rows),
    )
    return before.model_copy(update={"queue": queue, "released": (*before.released, *new)})


def waiting_rows(
    store: Store, digests: Sequence[str], ledger: Ledger, limit: int | None
) -> Iterator[Waiting]:
    """Yield the rows that wait, in the order in which nights take them.

    Args:
        store: That holds ledgers and rows.
        digests: Of the ledgers of all nights so far, from night 1.
        ledger: The last one; see `with_released`.
        limit: Rows at most; None: all.

    Raises:
        ArtifactError: If the store does not hold a ledger or its rows.
    """
    left = limit
    for queued in ledger.queue:
        folder = materialise(store, digests[queued.night - 1])
        numbers = [
            each.number
            for each in read_decisions(folder, (queued.decided,))
            if each.number > queued.after
        ][:left]
        for number, row in rows_of(store, ledger, numbers):
            yield Waiting(number, row, queued)
        if left is not None:
            left -= len(numbers)
            if not left:
                return


def without(
    queue: Iterable[Queued], waiting: Collection[Waiting], decided: Collection[int]
) -> tuple[Queued, ...]:
    """Return a queue after some rows of it were decided.

    Args:
        queue: Before.
        waiting: The rows that were read of it.
        decided: Numbers of those that do not wait any more: the first ones.
    """
    found: list[Queued] = []
    of_night: dict[tuple[int, str], list[int]] = {}
    for each in waiting:
        if each.number in decided:
            key = (each.queued.night, each.queued.decided)
            of_night.setdefault(key, []).append(each.number)
    for queued in queue:
        gone = of_night.get((queued.night, queued.decided), [])
        if left := queued.rows - len(gone):
            after = max(gone, default=queued.after)
            found.append(queued.model_copy(update={"after": after, "rows": left}))
    return tuple(found)
