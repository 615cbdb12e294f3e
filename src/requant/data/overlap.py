"""Which rows are the same text: what may not be both trained on and measured on."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.data.artifact import HELDOUT, TRAIN, documents_of_tasks
from requant.data.formats import Parsed, Row
from requant.data.messages import Message
from requant.data.samples import read_rows
from requant.errors import ContractError
from requant.wording import shown

NGRAM = 8
"""Words in a row that two texts hardly share by chance. Of 1,000 docstrings 51 share five words
with a measured one, 20 six, 8 eight."""
OVERLAP = 0.5
"""Share of a text's n-grams from which on it is taken for a measured one. Of 1,000 docstrings it
takes 7: the 4 that are equal to a measured one, and 3 near copies."""
WORD = re.compile(r"\w+")


def even(text: str) -> str:
    """A text with case and white space evened out."""
    return " ".join(text.casefold().split())


def normalised(row: Row) -> str:
    """The row's text, evened out; what differs elsewhere stays apart."""
    if "text" in row:
        return f"text:{even(row['text'])}"
    said = [f"{message['role']}:{even(message['content'])}" for message in row["messages"]]
    said += [canonical_json(found).decode() for found in map(_calls, row["messages"]) if found]
    return "\0".join(said)


def answers(row: Row) -> set[str]:
    """Every text of the assistant's, or the whole of a plain text, evened out."""
    if "text" in row:
        return {even(row["text"])}
    return {
        even(message["content"])
        for message in row["messages"]
        if message["role"] == "assistant" and message["content"].strip()
    }


def duplicates(rows: Sequence[Row]) -> int:
    """Count the rows that repeat an earlier one."""
    return len(rows) - len(set(map(normalised, rows)))


def refuse_overlap(train: Sequence[Parsed], heldout: Sequence[Parsed]) -> None:
    """Refuse training rows that are also in an explicitly given held-out part.

    Raises:
        ContractError: With their number, and the place and text of the first.
    """
    groups = {row.row["group"]: row.place for row in reversed(heldout) if "group" in row.row}
    split = [row for row in train if row.row.get("group") in groups]
    if split:
        first = split[0]
        raise ContractError(
            f"prepare_data.source: {len(split)} of {len(train)} training rows are of groups that "
            f"are held out too; the first: {first.place} and {groups[first.row['group']]} are both "
            f"of {shown(first.row['group'])}; remove them from one of the two, or set heldout to "
            "null to have whole groups cut off"
        )
    places = {normalised(row.row): row.place for row in reversed(heldout)}
    both = [row for row in train if normalised(row.row) in places]
    if both:
        twin = both[0].row
        raise ContractError(
            f"prepare_data.source: {len(both)} of {len(train)} training rows are held-out rows "
            f"too; the first: {both[0].place} is {places[normalised(twin)]}: "
            f"{shown(twin.get('messages') or twin['text'])}; remove them from one of the two, or "
            "set heldout to null to have a part cut off without overlap"
        )


def measured_texts(data: Path) -> set[str]:
    """Return, evened out, every text of a dataset artifact that models are measured on."""
    documents: list[Any] = []
    for path in documents_of_tasks(data):
        with path.open() as file:
            documents += map(json.loads, file)
    return texts_of(read_rows(data / HELDOUT), documents)


def texts_of(heldout: Iterable[Row], documents: Iterable[Any]) -> set[str]:
    """Return, evened out, all answers of rows and all texts of documents."""
    texts = {text for row in heldout for text in answers(row)}
    return texts | {even(text) for text in _values(list(documents))}


def ngrams(text: str, size: int = NGRAM) -> set[tuple[str, ...]]:
    """Every run of `size` words, case and punctuation aside; none where the text is shorter."""
    words = WORD.findall(text.casefold())
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


class Measured:
    """Texts that models are measured on, to hold others against."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index texts, evened out."""
        self.texts = frozenset(texts)
        self.ngrams = frozenset(gram for text in self.texts for gram in ngrams(text))

    def holds(self, texts: Iterable[str]) -> bool:
        """Tell whether one of some texts is measured on, or shares `OVERLAP` of its n-grams.

        A text of fewer words than `NGRAM` has none, and is held against whole texts alone.
        """
        return any(text in self.texts or self._overlap(text) >= OVERLAP for text in texts)

    def _overlap(self, text: str) -> float:
        found = ngrams(text)
        return len(found & self.ngrams) / len(found) if found else 0.0


def _calls(message: Message) -> list[Any]:
    return list(message.get("tool_calls", ()))


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _values(item)
    elif isinstance(value, list):
        for item in value:
            yield from _values(item)


def past_heldout(past: Sequence[Path], data: Path, limit: int) -> tuple[list[Row], list[Row]]:
    """Choose held-out rows of earlier nights, as many of each night as the limit allows.

    Args:
        past: Dataset artifacts, last night's first.
        data: Tonight's dataset artifact; what it holds out is evaluated already.
        limit: Rows at most.

    Returns:
        The rows, and those that tonight trains on, they or their group: a model that has read the
        answers proves nothing.
    """
    train = read_rows(data / TRAIN)
    trained = {normalised(row) for row in train}
    groups = {row["group"] for row in train if "group" in row}
    seen = {normalised(row) for row in read_rows(data / HELDOUT)}
    nights: list[list[Row]] = []
    left_out: list[Row] = []
    for folder in past:
        kept: list[Row] = []
        for row in read_rows(folder / HELDOUT):
            text = normalised(row)
            if text in seen:
                continue
            seen.add(text)
            known = text in trained or row.get("group") in groups
            (left_out if known else kept).append(row)
        nights.append(kept)
    by_turns = [row for turn in zip_longest(*nights) for row in turn if row is not None]
    return by_turns[:limit], left_out
