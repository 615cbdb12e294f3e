"""The rows artifact: what a night read that none had read before, in the order in which it came.

rows.parquet     one row each: source, place, the row as JSON, why it cannot be used, its keys
collected.json   how many rows each source had, and the outcomes of earlier nights by then
template.json    the rules by which rows are rendered
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from requant.canonical import canonical_json
from requant.data.formats import Row
from requant.store.lines import Verdict

Item = TypeVar("Item")

ROWS = "rows.parquet"
CARD = "collected.json"
GROUP_ROWS = 16_384
"""Rows that are in memory at once."""


@dataclass(frozen=True)
class CollectedRow:
    """A row that no earlier night has read."""

    source: str
    place: str
    """Within the source: file and line, or number."""
    row: Row | None
    """None where it cannot be used."""
    reason: str
    """Why it cannot; empty where it can."""
    excerpt: str
    """Beginning of what stands there, of a row that cannot be used."""
    content: tuple[int, int]
    """128 bits of what the row says; of one that cannot be used, of its bytes."""
    occurrence: int
    """64 bits of content and place."""


class SourceCount(BaseModel):
    """What was read of a source tonight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: int
    """Rows in the source."""
    known: int
    """Those at whose place an earlier night has read the same."""
    bad: int
    """New ones that cannot be used."""
    formats: dict[str, int]
    ignored: dict[str, int]
    """Column or field that nothing reads -> new rows in which it stands."""


class Card(BaseModel):
    """What a night read, and what it knew of the nights before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: dict[str, SourceCount]
    outcomes: dict[int, Verdict]


def write_rows(path: Path, rows: Iterable[CollectedRow]) -> int:
    """Write rows as they come; return how many."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema(
        [
            ("source", pa.string()),
            ("place", pa.string()),
            ("row", pa.string()),
            ("reason", pa.string()),
            ("excerpt", pa.string()),
            ("content_high", pa.uint64()),
            ("content_low", pa.uint64()),
            ("occurrence", pa.uint64()),
        ]
    )
    count = 0
    with ParquetWriter(path, schema, compression="zstd") as writer:
        for group in grouped(rows, GROUP_ROWS):
            count += len(group)
            writer.write_table(pa.Table.from_pylist(list(map(_stored, group)), schema=schema))
    return count


def read_rows(path: Path) -> Iterator[list[CollectedRow]]:
    """Yield the rows of a file in their order, a group at a time."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield [_row(item) for item in file.read_row_group(index).to_pylist()]


def rows_at(path: Path, positions: Sequence[int]) -> list[CollectedRow]:
    """Return the rows at some positions of a file, in ascending order of position; read no others.

    Args:
        path: Of rows.parquet.
        positions: From 0, in any order, each once.
    """
    from pyarrow.parquet import ParquetFile

    wanted = sorted(positions)
    found: list[CollectedRow] = []
    with ParquetFile(path) as file:
        start = 0
        for index in range(file.num_row_groups):
            end = start + file.metadata.row_group(index).num_rows
            inside = [at - start for at in wanted if start <= at < end]
            if inside:
                group = file.read_row_group(index).take(inside)
                found += [_row(item) for item in group.to_pylist()]
            start = end
    return found


def read_card(folder: Path) -> Card:
    """Read what a night read of each source."""
    return Card.model_validate_json((folder / CARD).read_bytes())


def write_card(folder: Path, card: Card) -> None:
    """Write it as canonical JSON."""
    (folder / CARD).write_bytes(canonical_json(card.model_dump(mode="json")))


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of at most `size`, as they come."""
    waiting = iter(items)
    while group := list(islice(waiting, size)):
        yield group


def _stored(row: CollectedRow) -> dict[str, Any]:
    return {
        "source": row.source,
        "place": row.place,
        "row": None if row.row is None else canonical_json(row.row).decode(),
        "reason": row.reason,
        "excerpt": row.excerpt,
        "content_high": row.content[0],
        "content_low": row.content[1],
        "occurrence": row.occurrence,
    }


def _row(item: Mapping[str, Any]) -> CollectedRow:
    return CollectedRow(
        source=item["source"],
        place=item["place"],
        row=None if item["row"] is None else json.loads(item["row"]),
        reason=item["reason"],
        excerpt=item["excerpt"],
        content=(item["content_high"], item["content_low"]),
        occurrence=item["occurrence"],
    )
