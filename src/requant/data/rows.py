"""Rows of one shape: cut into training and held-out part, compared, ordered, written."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.data.formats import Row
from requant.data.overlap import normalised


@dataclass(frozen=True)
class Split:
    """What is trained on and what is never trained on."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]


def conversation(prompt: str, response: str) -> Row:
    """One question and its answer."""
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
    }


def cut(rows: Sequence[Row], fraction: float, seed: int) -> Split:
    """Cut about `fraction` of the rows off as held-out.

    A row's side depends on its text (its group, where it has one) and the seed alone, so equal rows
    are on one side, and a row that is held out tonight is held out tomorrow. Of equal rows whose
    groups are on different sides the held-out ones are in neither part: what is trained on is not
    measured on, and no group is split.
    """
    sides = held_out(rows, fraction, seed)
    train = tuple(row for row, out in zip(rows, sides, strict=True) if not out)
    heldout = tuple(row for row, out in zip(rows, sides, strict=True) if out)
    if any("group" in row for row in rows):
        trained = set(map(normalised, train))
        heldout = tuple(row for row in heldout if normalised(row) not in trained)
    return Split(train, heldout)


def is_held_out(row: Row, fraction: float, seed: int) -> bool:
    """Tell whether a row is held out whatever the other rows are; see `cut`."""
    return _point(row, seed) <= fraction


def held_out(rows: Sequence[Row], fraction: float, seed: int) -> list[bool]:
    """Tell of each row whether it is held out; see `cut`. Of any rows at least one is."""
    points = [_point(row, seed) for row in rows]
    limit = max(fraction, min(points, default=0.0) * (1 + 1e-12))
    return [point <= limit for point in points]


def shuffled(rows: Sequence[Row], seed: int, salt: str) -> tuple[Row, ...]:
    """Return the rows in an order that depends on `seed` and `salt` alone."""
    return tuple(random.Random(f"{seed}-{salt}").sample(rows, len(rows)))


def answer(row: Row) -> str:
    """The assistant's last message, or the whole of a plain text; empty for a bare tool call."""
    if "text" in row:
        return str(row["text"]).strip()
    return str(row["messages"][-1]["content"]).strip()


def question(row: Row) -> str:
    """Everything before the assistant's last message, as one text; empty for a plain text."""
    said = (message["content"].strip() for message in row.get("messages", ())[:-1])
    return "\n\n".join(text for text in said if text)


def json_lines(rows: Iterable[Any]) -> bytes:
    """Spell one canonical JSON value a line."""
    return b"".join(canonical_json(row) + b"\n" for row in rows)


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one canonical JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_lines(rows))


def cluster(row: Row) -> dict[str, str]:
    """Return what marks the documents of one group, without its name; empty for a row of none."""
    if "group" not in row:
        return {}
    return {"cluster": hashlib.sha256(str(row["group"]).encode()).hexdigest()[:16]}


def _point(row: Row, seed: int) -> float:
    side = f"group\0{row['group']}" if "group" in row else normalised(row)
    digest = hashlib.sha256(f"heldout-{seed}\0{side}".encode()).hexdigest()
    return int(digest[:13], 16) / 16**13
