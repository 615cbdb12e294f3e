"""Rows of one shape: cut into training and held-out part, compared, ordered, written."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.data.formats import Parsed, Row
from requant.data.messages import Message
from requant.errors import ContractError
from requant.wording import shown


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

    A row's side depends on its text and the seed alone, so equal rows are on one side, and a row
    that is held out tonight is held out tomorrow.
    """
    points = [_point(row, seed) for row in rows]
    limit = max(fraction, min(points, default=0.0) * (1 + 1e-12))
    return Split(
        train=tuple(row for row, point in zip(rows, points, strict=True) if point > limit),
        heldout=tuple(row for row, point in zip(rows, points, strict=True) if point <= limit),
    )


def refuse_overlap(train: Sequence[Parsed], heldout: Sequence[Parsed]) -> None:
    """Refuse training rows that are also in an explicitly given held-out part.

    Raises:
        ContractError: With their number, and the place and text of the first.
    """
    places = {normalised(row.row): row.place for row in reversed(heldout)}
    both = [row for row in train if normalised(row.row) in places]
    if both:
        first = both[0].row
        raise ContractError(
            f"prepare_data.source: {len(both)} of {len(train)} training rows are held-out rows "
            f"too; the first: {both[0].place} is {places[normalised(first)]}: "
            f"{shown(first.get('messages') or first['text'])}; remove them from one of the two, or "
            "set heldout to null to have a part cut off without overlap"
        )


def shuffled(rows: Sequence[Row], seed: int, salt: str) -> tuple[Row, ...]:
    """Return the rows in an order that depends on `seed` and `salt` alone."""
    return tuple(random.Random(f"{seed}-{salt}").sample(rows, len(rows)))


def normalised(row: Row) -> str:
    """The row's text with case and white space evened out; what differs elsewhere stays apart."""
    if "text" in row:
        return f"text:{_even(row['text'])}"
    said = [f"{message['role']}:{_even(message['content'])}" for message in row["messages"]]
    said += [canonical_json(found).decode() for found in map(_calls, row["messages"]) if found]
    return "\0".join(said)


def answer(row: Row) -> str:
    """The assistant's last message, or the whole of a plain text; empty for a bare tool call."""
    if "text" in row:
        return str(row["text"]).strip()
    return str(row["messages"][-1]["content"]).strip()


def question(row: Row) -> str:
    """Everything before the assistant's last message, as one text; empty for a plain text."""
    said = (message["content"].strip() for message in row.get("messages", ())[:-1])
    return "\n\n".join(text for text in said if text)


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one canonical JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(canonical_json(row) + b"\n" for row in rows))


def _point(row: Row, seed: int) -> float:
    digest = hashlib.sha256(f"heldout-{seed}\0{normalised(row)}".encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def _calls(message: Message) -> list[Any]:
    return list(message.get("tool_calls", ()))


def _even(text: str) -> str:
    return " ".join(text.casefold().split())
