"""A sample of all rows that a line was trained on, of bounded size: Vitter's algorithm R (1985)."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from requant.store.lines import Verdict


class Reservoir(BaseModel):
    """Numbers of rows, each of all rows seen with the same probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[tuple[int, int], ...] = Field((), description="number, and the night it trained in")
    size: int = Field(0, description="rows that are kept at most")
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
        place = seen - 1 if seen <= size else draw.randrange(seen)
        if place < len(rows):
            rows[place] = (number, night)
        elif place < size:
            # Or in the place of one that was taken out.
            rows.append((number, night))
    nights = before.nights | {night: len(numbers)}
    return Reservoir(rows=tuple(rows), size=size, nights=nights)


def brought_up(
    before: Reservoir,
    outcomes: Mapping[int, Verdict],
    trained_in: Callable[[int], Iterable[int]],
    size: int,
    seed: int,
) -> Reservoir:
    """Pour the nights in that were accepted since.

    Where one is not accepted any more, or the size is another, all are poured in anew: rows that
    only filled the places of others would be drawn more often than these.

    Args:
        before: Of the last ledger.
        outcomes: Of every night by now.
        trained_in: Number of a night -> numbers of the rows that it trained on.
        size: Rows that are kept at most.
        seed: Of the line.
    """
    accepted = [night for night, verdict in sorted(outcomes.items()) if verdict == "accepted"]
    grown = before.size == size and before.nights.keys() <= set(accepted)
    now = before if grown else Reservoir(size=size)
    for night in accepted:
        if night not in now.nights:
            now = poured(now, night, list(trained_in(night)), size, seed)
    return now
