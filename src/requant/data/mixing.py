"""What a night is trained on: new rows, rows of earlier nights, old text."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from requant.config.data import Replay
from requant.data.formats import Row
from requant.data.rows import shuffled

NEW, GENERAL_TEXT = "new", "general"


@dataclass(frozen=True)
class Mix:
    """Rows in the order of the night, and where they are from."""

    rows: tuple[Row, ...]
    counts: dict[str, int]
    """new, night <n>, general -> rows."""
    said: tuple[str, ...]
    """What a person should know: shares that could not be had."""


def mixed(
    new: Sequence[Row],
    earlier: Mapping[int, Sequence[Row]],
    general: Sequence[Row],
    replay: Replay,
    seed: int,
    *,
    night: int = 0,
    whole: bool = False,
) -> Mix:
    """Mix rows by shares: n new ones are joined by n * share / (1 - shares) of each other kind.

    Args:
        new: All are taken, in their order where there is nothing else.
        earlier: Night -> rows of the reservoir; drawn by the seed, each with the same chance.
        general: Old text; the first ones are taken.
        replay: Shares of all rows.
        seed: Of the draw and the order.
        night: Its number: each night draws anew.
        whole: Take all of `earlier`, whatever its share.
    """
    unit = len(new) / (1 - replay.rows - replay.general)
    wanted = {"rows": round(unit * replay.rows), "general": round(unit * replay.general)}
    pool = [(f"night {night}", row) for night, rows in earlier.items() for row in rows]
    count = len(pool) if whole else min(wanted["rows"], len(pool))
    drawn = random.Random(f"{seed}-replay-{night}").sample(pool, count)
    texts = [(GENERAL_TEXT, row) for row in general[: wanted["general"]]]
    taken = [*((NEW, row) for row in new), *drawn, *texts]
    counts: dict[str, int] = {}
    for source, _ in taken:
        counts[source] = counts.get(source, 0) + 1
    said = [
        f"prepare_data.replay.{name}={share:g} asks for {wanted[name]} rows, and there are {there}"
        for name, share, there in (
            ("rows", replay.rows, len(pool)),
            ("general", replay.general, len(general)),
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
