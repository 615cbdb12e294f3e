"""A sample of all rows that a line was trained on, of bounded size: Vitter's algorithm R (1985)."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from requant.store.lines import Verdict


class Reservoir(BaseModel):
    """Numbers of rows, each of all rows seen with the same probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[tuple[int, int], ...] = Field((), description="number, and the night it trained in")
    nights: dict[int, int] = Field(
        default_factory=dict, description="accepted nights that were poured in, and their rows"
    )

    @property
    def seen(self) -> int:
        """Rows that were poured in."""
        return sum(self.nights.values())


def poured(
    before: Reservoir, night: int, numbers: Sequence[int], size: int, seed: int
) -> Reservoir:
    """Pour the rows of a night in: the i-th row of all takes a random place with chance size / i.

    Args:
        before: Of the nights before.
        night: Its number.
        numbers: Of the rows it trained on.
        size: Rows that are kept at most.
        seed: Of the line.
    """
    draw = random.Random(f"{seed}-reservoir-{night}")
    rows = list(before.rows)
    for seen, number in enumerate(numbers, before.seen + 1):
        if len(rows) < size:
            rows.append((number, night))
        elif (place := draw.randrange(seen)) < size:
            rows[place] = (number, night)
    return Reservoir(rows=tuple(rows), nights=before.nights | {night: len(numbers)})


def brought_up(
    before: Reservoir,
    outcomes: Mapping[int, Verdict],
    trained_in: Callable[[int], Iterable[int]],
    size: int,
    seed: int,
) -> Reservoir:
    """Pour the nights in that were accepted since, and drop those that are not accepted any more.

    Args:
        before: Of the last ledger.
        outcomes: Of every night by now.
        trained_in: Number of a night -> numbers of the rows that it trained on.
        size: Rows that are kept at most.
        seed: Of the line.
    """
    kept = {n: rows for n, rows in before.nights.items() if outcomes.get(n) == "accepted"}
    now = Reservoir(rows=tuple(row for row in before.rows if row[1] in kept), nights=kept)
    for night, verdict in sorted(outcomes.items()):
        if verdict == "accepted" and night not in kept:
            now = poured(now, night, list(trained_in(night)), size, seed)
    return now
