"""Tonight's ledger: each new row, and each that waited, is decided on in the order they came.

cannot be read or rendered             quarantined
says what an earlier row says          exact_duplicate, near_duplicate
of the rest, by its own text           held_out, or for training
for training, and shares 13 words with
a held-out or an evaluation text     contaminated
beyond max_rows, or too few in all     waiting
else                                   taken
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from requant.config.collecting import ExtendLedger
from requant.data.formats import Row
from requant.ledger.batch import Batch
from requant.ledger.divide import divide
from requant.ledger.document import Decision, Ledger, Queued, ReadIn, read_night
from requant.ledger.fates import Cell, moved
from requant.ledger.queue import Waiting, without
from requant.ledger.reservoir import Reservoir
from requant.ledger.rows import CollectedRow
from requant.ledger.verdicts import Verdicts

Numbered = tuple[int, Row]


@dataclass(frozen=True)
class Tonight:
    """What a night decides."""

    decisions: tuple[Decision, ...]
    """On every new row, and on those that waited and do not any more."""
    kept: tuple[int, ...]
    """Numbers of new rows that repeat no other, and no measured text."""
    held_out: tuple[Numbered, ...]


def verdicts_in_words(
    batch: Batch, verdicts: Verdicts, near_duplicates: bool
) -> dict[int, Decision]:
    """Return number -> decision of the rows that repeat an earlier one, or measured text.

    Args:
        batch: The rows.
        verdicts: What the index says of them.
        near_duplicates: Whether rows that nearly repeat another are dropped too.
    """
    found: dict[int, Decision] = {}
    for at, number in enumerate(batch.numbers.tolist()):
        same, near = int(verdicts.known[at]), int(verdicts.nearest.row[at])
        if same >= 0:
            found[number] = Decision(number, "exact_duplicate", "says the same as", same)
        elif verdicts.contaminated[at]:
            found[number] = _contaminated(number, int(verdicts.shared[at]))
        elif near >= 0 and near_duplicates:
            alike = f"{verdicts.nearest.similarity[at]:.0%} of its word runs are those of"
            found[number] = Decision(number, "near_duplicate", alike, near)
    return found


def decide(
    section: ExtendLedger,
    seed: int,
    new: Mapping[int, CollectedRow],
    known: Mapping[int, Decision],
    waiting: Sequence[Waiting],
    shared: Callable[[Sequence[Numbered]], Mapping[int, int]],
) -> Tonight:
    """Decide on rows.

    Args:
        section: Of the configuration.
        seed: Of the line.
        new: Number to row, of the rows that no night has read before.
        known: Decisions on new rows that repeat others.
        waiting: Rows of earlier nights, those that wait longest first.
        shared: Rows that tonight holds out -> number of a row -> how many runs of 13 words it
            shares with these and with all other measured text.
    """
    decisions: list[Decision] = []
    kept: list[Numbered] = []
    for number, row in new.items():
        if row.row is None:
            decisions.append(Decision(number, "quarantined", row.reason))
        elif number in known:
            decisions.append(known[number])
        else:
            kept.append((number, row.row))
    pending = [(each.number, each.row.row) for each in waiting if each.row.row is not None]
    divided = divide(
        [*pending, *kept],
        fraction=section.heldout_fraction,
        max_rows=section.max_rows,
        min_rows=section.min_new_rows,
        seed=seed,
    )
    rows = dict([*pending, *kept])
    held_out = [(number, rows[number]) for number in divided.held_out]
    decisions += [Decision(number, "held_out") for number, _ in held_out]
    # Those that waited have not met what was held out since; a night of few rows may hold out one
    # that it would have trained on.
    runs = shared(held_out)
    decisions += [
        _contaminated(number, runs[number]) if number in runs else Decision(number, "taken")
        for number in divided.training
    ]
    decisions += [Decision(number, "waiting") for number in divided.waiting if number in new]
    dropped = {each.number for each in decisions if each.decided == "contaminated"}
    return Tonight(
        decisions=tuple(decisions),
        kept=tuple(number for number, _ in kept if number not in dropped),
        held_out=tuple(held_out),
    )


def extended(
    before: Ledger,
    parent: str | None,
    collected: str,
    new: Mapping[int, CollectedRow],
    waiting: Sequence[Waiting],
    tonight: Tonight,
    reservoir: Reservoir,
    *,
    consolidates: bool,
) -> Ledger:
    """Return the ledger after a night.

    Args:
        before: The last ledger, released nights in its queue; see `requant.ledger.queue`.
        parent: Its digest.
        collected: Digest of the artifact of the new rows.
        new: Number to row, of those.
        waiting: Rows of the queue that were looked at.
        tonight: What was decided.
        reservoir: Of the rows that earlier nights trained on.
        consolidates: Whether the night trains the original on the reservoir.
    """
    night = before.night + 1
    waited = {each.number: each for each in waiting}
    left: list[Cell] = []
    came: list[Cell] = []
    for decision in tonight.decisions:
        earlier = waited.get(decision.number)
        if earlier is None:
            came.append((night, new[decision.number].source, decision.decided, night))
            continue
        read, source = read_night(before, decision.number), earlier.row.source
        left.append((read, source, earlier.queued.decided, earlier.queued.night))
        came.append((read, source, decision.decided, night))
    waits = sum(each.decided == "waiting" for each in tonight.decisions)
    queue = without(before.queue, waiting, {each.number for each in tonight.decisions})
    return Ledger(
        nights=(*before.nights, ReadIn(first=before.rows, rows=len(new), artifact=collected)),
        ledgers=(*before.ledgers, *([parent] if parent else [])),
        counts=moved(before.counts, left, came),
        queue=(*queue, *([Queued(night=night, decided="waiting", rows=waits)] if waits else [])),
        released=before.released,
        reservoir=reservoir,
        consolidates=consolidates,
    )


def _contaminated(number: int, runs: int) -> Decision:
    reason = f"shares {runs} runs of 13 words with held-out or evaluation text"
    return Decision(number, "contaminated", reason)
