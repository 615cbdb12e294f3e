"""What a night is trained on: new rows, rows of earlier nights, old text, what the base wrote."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from requant.config.data import Replay
from requant.data.formats import Row
from requant.data.overlap import Measured, even
from requant.data.plain_text import chunks
from requant.data.rows import shuffled

NEW, GENERAL_TEXT, BY_THE_BASE = "new", "general", "written"
GENERAL_PIECES = 256
"""Pieces of some 150 tokens each: a calibration takes half of them at most."""


@dataclass(frozen=True)
class Mix:
    """Rows in the order of the night, and where they are from."""

    rows: tuple[Row, ...]
    counts: dict[str, int]
    """new, night <n>, general, written -> rows."""
    said: tuple[str, ...]
    """What a person should know: shares that could not be had."""


def mixed(
    new: Sequence[Row],
    earlier: Mapping[int, Sequence[Row]],
    general: Sequence[Row],
    replay: Replay,
    seed: int,
    *,
    written: Sequence[Row] = (),
    night: int | str = 0,
    whole: bool = False,
) -> Mix:
    """Mix rows by shares: n new ones are joined by n * share / (1 - shares) of each other kind.

    Args:
        new: All are taken, in their order where there is nothing else.
        earlier: Night -> rows of the reservoir; drawn by the seed, each with the same chance.
        general: Old text; the first ones are taken.
        replay: Shares of all rows.
        seed: Of the draw and the order.
        written: What the original base wrote; drawn by the seed, each with the same chance.
        night: What tells it from others, such as its number: each night draws anew.
        whole: Take all of `earlier`, whatever its share.
    """
    unit = len(new) / (1 - replay.rows - replay.general - replay.written)
    shares = {"rows": replay.rows, "general": replay.general, "written": replay.written}
    wanted = {name: round(unit * share) for name, share in shares.items()}
    pool = [(f"night {number}", row) for number, rows in earlier.items() for row in rows]
    count = len(pool) if whole else min(wanted["rows"], len(pool))
    drawn = random.Random(f"{seed}-replay-{night}").sample(pool, count)
    texts = [(GENERAL_TEXT, row) for row in general[: wanted["general"]]]
    asked = min(wanted["written"], len(written))
    own = random.Random(f"{seed}-written-{night}").sample(written, asked)
    taken = [*((NEW, row) for row in new), *drawn, *texts, *((BY_THE_BASE, row) for row in own)]
    counts: dict[str, int] = {}
    for source, _ in taken:
        counts[source] = counts.get(source, 0) + 1
    said = [
        f"prepare_data.replay.{name}={shares[name]:g} asks for {wanted[name]} rows, and there are "
        f"{there}"
        for name, there in (
            ("rows", len(pool)),
            ("general", len(general)),
            ("written", len(written)),
        )
        if wanted[name] > there
    ]
    if len(counts) > 1:
        said.append(
            "trained on: " + ", ".join(f"{rows} {source}" for source, rows in counts.items())
        )
    rows = [row for _, row in taken]
    return Mix(
        rows=shuffled(rows, seed, "mix") if len(counts) > 1 else tuple(rows),
        counts=counts,
        said=tuple(said),
    )


def general_rows(old_text: str, measured: Sequence[str], seed: int) -> list[Row]:
    """Take pieces of old text that nobody measures on, the order by the seed."""
    held = Measured(map(even, measured))
    pieces = [piece for piece in dict.fromkeys(chunks(old_text)) if not held.holds([even(piece)])]
    taken = random.Random(f"{seed}-general").sample(pieces, min(GENERAL_PIECES, len(pieces)))
    return [{"text": piece} for piece in taken]


def unmeasured(rows: Sequence[Row], measured: Measured) -> list[Row]:
    """Return the rows of which no text, question or answer, is measured on."""

    def said(row: Row) -> list[str]:
        texts = [row["text"]] if "text" in row else [each["content"] for each in row["messages"]]
        return [even(text) for text in texts if text.strip()]

    return [row for row in rows if not measured.holds(said(row))]
