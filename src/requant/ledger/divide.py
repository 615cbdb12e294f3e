"""Which of the rows that are left a night takes, which it holds out, and which wait."""

from collections.abc import Sequence
from dataclasses import dataclass

from requant.data.formats import Row
from requant.data.rows import held_out


@dataclass(frozen=True)
class Divided:
    """Numbers of rows, each in ascending order."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]
    waiting: tuple[int, ...]


def divide(
    rows: Sequence[tuple[int, Row]],
    *,
    fraction: float,
    max_rows: int | None,
    min_rows: int,
    seed: int,
) -> Divided:
    """Take the first rows, `max_rows` of them for training, and hold some out.

    A row's side depends on its text (its group) and the seed; see `requant.data.rows.held_out`.

    Args:
        rows: Number and row, those that wait longest first.
        fraction: About so many are held out.
        max_rows: Training rows at most; None: all.
        min_rows: With fewer rows all wait; and where none of them would be trained on.
        seed: Of the line.
    """
    if len(rows) < min_rows:
        return Divided((), (), tuple(number for number, _ in rows))
    sides = held_out([row for _, row in rows], fraction, seed)
    taken = len(rows)
    if max_rows is not None:
        training = [place for place, out in enumerate(sides) if not out]
        taken = training[max_rows] if len(training) > max_rows else taken
        # One of the rows that are taken is to be held out, beside those to train on.
        taken += not any(sides[:taken])
        sides = held_out([row for _, row in rows[:taken]], fraction, seed)
    if all(sides):
        return Divided((), (), tuple(number for number, _ in rows))
    numbered = [(number, out) for (number, _), out in zip(rows[:taken], sides, strict=True)]
    return Divided(
        training=tuple(number for number, out in numbered if not out),
        held_out=tuple(number for number, out in numbered if out),
        waiting=tuple(number for number, _ in rows[taken:]),
    )
