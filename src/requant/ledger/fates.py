"""What can become of a row, and how many rows of which source met which fate.

| fate            | the row |
|-----------------|---|
| training        | was taken by a night whose outcome is not known yet |
| trained         | was trained on by a night that was accepted |
| held_out        | is measured on, and never trained on |
| exact_duplicate | has the text of an earlier row, case and white space aside |
| near_duplicate  | has nearly the text of an earlier row |
| contaminated    | shares a run of 13 words with held-out or evaluation text |
| quarantined     | cannot be read or rendered |
| waiting         | is for a later night |
| set_aside       | was taken by a night that was refused, or waits for a person |
| discarded       | was set aside, and a person discarded it |
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from requant.store.lines import SET_ASIDE, Line

Decided = Literal[
    "taken",
    "held_out",
    "exact_duplicate",
    "near_duplicate",
    "contaminated",
    "quarantined",
    "waiting",
]
"""What a night decides of a row; what becomes of those it takes its outcome decides."""
DECIDED: tuple[Decided, ...] = get_args(Decided)
Fate = Literal[
    "training",
    "trained",
    "held_out",
    "exact_duplicate",
    "near_duplicate",
    "contaminated",
    "quarantined",
    "waiting",
    "set_aside",
    "discarded",
]
FATES: tuple[Fate, ...] = get_args(Fate)


class Count(BaseModel):
    """How many rows of a source, first read in a night, have what was decided in a night."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: int
    """Number of the night that read them first."""
    source: str
    decided: Decided
    night: int
    """Number of the night that decided it last."""
    rows: int


Cell = tuple[int, str, Decided, int]
"""The fields of a count but its rows."""


def resolved(decided: Decided, night: int, line: Line) -> Fate:
    """Return a row's fate.

    Args:
        decided: What a night decided last of it.
        night: Number of that night.
        line: Head of the line: the outcomes of its nights.
    """
    if decided != "taken":
        return decided
    outcome = line.nights.get(night)
    if outcome is None:
        return "training"
    if outcome.verdict in SET_ASIDE:
        return "set_aside"
    ends: Mapping[str, Fate] = {"accepted": "trained", "released": "waiting"}
    return ends.get(outcome.verdict, "discarded")


def moved(before: Iterable[Count], left: Iterable[Cell], came: Iterable[Cell]) -> tuple[Count, ...]:
    """Return the counts after rows left some cells and came to others, in order.

    Raises:
        ValueError: If more rows left a cell than were in it.
    """
    cells = Counter({(c.read, c.source, c.decided, c.night): c.rows for c in before})
    cells.update(came)
    cells.subtract(left)
    if any(rows < 0 for rows in cells.values()):
        raise ValueError(f"more rows left than there were: {min(cells, key=lambda c: cells[c])}")
    return tuple(
        Count(read=read, source=source, decided=decided, night=night, rows=rows)
        for (read, source, decided, night), rows in sorted(cells.items())
        if rows
    )


def by_fate(counts: Iterable[Count], line: Line) -> dict[tuple[int, str], dict[Fate, int]]:
    """Return (night that read them, source) -> fate -> rows, in the order of the nights."""
    found: dict[tuple[int, str], dict[Fate, int]] = {}
    for count in counts:
        cell = found.setdefault((count.read, count.source), {})
        fate = resolved(count.decided, count.night, line)
        cell[fate] = cell.get(fate, 0) + count.rows
    return dict(sorted(found.items()))
