"""Words of rows as 64-bit numbers, and the runs of words by which texts are compared.

Words are `requant.data.overlap.WORD`, casefolded: case, punctuation and white space are aside.
Text that is written without spaces (Chinese, Japanese, Thai) has one word between two marks of
punctuation, so that texts in it share whole clauses or nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from requant.canonical import canonical_json
from requant.data.formats import Row
from requant.data.overlap import WORD

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2**64."""
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Multipliers of splitmix64's last step (Steele et al. 2014, variant 13 of Stafford)."""


@dataclass(frozen=True)
class Lists:
    """Lists of 64-bit numbers, one after another: list i is `values[starts[i]:starts[i + 1]]`."""

    values: Keys
    starts: Places
    """One more than there are lists; the first is 0."""

    @property
    def sizes(self) -> Places:
        """Length of each list."""
        return np.diff(self.starts)

    @property
    def owners(self) -> Places:
        """For each value the list that it is in."""
        return np.repeat(np.arange(len(self.starts) - 1), self.sizes)


@dataclass(frozen=True)
class Words:
    """The words of some rows."""

    messages: Lists
    """One list for each message, or for a plain text."""
    firsts: Places
    """First message of each row, and the number of messages at the end."""
    answers: Flags
    """For each message whether a model is measured on it: the assistant's, and plain text."""

    @property
    def rows(self) -> Lists:
        """One list for each row, its messages joined."""
        return Lists(self.messages.values, self.messages.starts[self.firsts])


def words_of(rows: Sequence[Row]) -> Words:
    """Hash the words of rows, system prompts and offered tools apart.

    Those stand in every row of a source: rows would be alike by what they were asked to be like.
    """
    said = [list(_said(row)) for row in rows]
    messages = [message for row in said for message in row]
    hashed = lru_cache(maxsize=1 << 16)(_hash_of_word)
    found = [WORD.findall(text.casefold()) for _, text in messages]
    sizes = [len(words) for words in found]
    values = np.fromiter(map(hashed, chain.from_iterable(found)), np.uint64, sum(sizes))
    return Words(
        messages=Lists(values, starts_of(sizes)),
        firsts=starts_of([len(row) for row in said]),
        answers=np.array([role in {"assistant", "text"} for role, _ in messages], bool),
    )


def runs(words: Lists, size: int) -> Lists:
    """Hash every run of `size` words in each list; a shorter list has none."""
    ends = np.repeat(words.starts[1:], words.sizes)
    begins = np.flatnonzero(np.arange(len(ends)) + size <= ends)
    counts = np.maximum(words.sizes - size + 1, 0)
    return Lists(_hashed(words.values, begins, begins + size), starts_of(counts))


def whole_runs(words: Lists, contents: Keys) -> Keys:
    """Hash each list as one run; a list without a word is known by its row's content alone.

    Args:
        words: One list a row.
        contents: Content keys, uint64 [rows, 2].
    """
    hashed = _hashed(words.values, words.starts[:-1], words.starts[1:])
    return np.where(words.sizes > 0, hashed, contents[:, 0])


def with_one_more(lists: Lists, values: Keys, wanted: Flags) -> Lists:
    """Append to each wanted list its value."""
    places = lists.starts[1:][wanted]
    return Lists(
        np.insert(lists.values, places, values[wanted]),
        lists.starts + starts_of(wanted.astype(np.int64)),
    )


def joined(parts: Sequence[Lists]) -> Lists:
    """Put lists one after another."""
    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
    values = np.concatenate([np.empty(0, np.uint64), *(part.values for part in parts)])
    return Lists(values, starts_of(sizes))


def starts_of(sizes: Sequence[int] | Places) -> Places:
    """Where each of some lists starts, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def mixed(keys: Keys) -> Keys:
    """Spread every bit over all 64, one to one."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(MIX[0])
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(MIX[1])
    return keys ^ (keys >> np.uint64(31))


def _said(row: Row) -> Iterator[tuple[str, str]]:
    if "text" in row:
        yield "text", row["text"]
    for message in row.get("messages", ()):
        if message["role"] != "system":
            calls = (
                canonical_json(message["tool_calls"]).decode() if "tool_calls" in message else ""
            )
            yield message["role"], f"{message['content']} {calls}"


def _hash_of_word(word: str) -> int:
    return xxh3_64_intdigest(word.encode())


def _hashed(values: Keys, begins: Places, ends: Places) -> Keys:
    """Hash of `values[begin:end]`: the sum of values[begin + i] * BASE**-i, and the length, mixed.

    By sums up to each place one hash costs the same for a run of any length.
    """
    down = np.full(len(values), pow(BASE, -1, 1 << 64), np.uint64)
    up = np.full(len(values) + 1, BASE, np.uint64)
    if len(down):
        down[0] = 1
    up[0] = 1
    weighted = values * np.cumprod(down, dtype=np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weighted, dtype=np.uint64)])
    powers = np.cumprod(up, dtype=np.uint64)
    lengths = (ends - begins).astype(np.uint64)
    return mixed((sums[ends] - sums[begins]) * powers[begins] + lengths)
