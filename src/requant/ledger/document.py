"""The ledger artifact: what a night decided of rows, on top of the ledger before it.

ledger.json          the rows of every night so far, counts, the queue
decisions.parquet    a row each that this night decided on: its number, decision, reason
index.json, index/   what earlier rows are looked up by; see requant.ledger.index

A row's number is its place among all rows the line has ever read, from 0.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from requant.canonical import canonical_json
from requant.errors import ArtifactError
from requant.ledger.fates import Count, Decided
from requant.ledger.reservoir import Reservoir
from requant.ledger.rows import ROWS, CollectedRow, rows_at
from requant.store import Store, materialise
from requant.store.layout import Digest
from requant.store.lines import LEDGER

DECISIONS = "decisions.parquet"


class ReadIn(BaseModel):
    """The rows that a night read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(description="number of the first of them")
    rows: int
    artifact: Digest = Field(description="that holds them")


class Queued(BaseModel):
    """Rows of one ledger that wait for a later night."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    night: int = Field(description="whose ledger")
    decided: Decided = Field(description="which of its rows: waiting, or taken and released")
    rows: int = Field(description="of them that wait")
    after: int = Field(-1, description="number of the last of them that is decided since")


class Ledger(BaseModel):
    """A ledger without its decisions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nights: tuple[ReadIn, ...] = Field(description="rows read, by night, from night 1")
    ledgers: tuple[Digest, ...] = Field(description="of the nights before, from night 1")
    counts: tuple[Count, ...]
    queue: tuple[Queued, ...]
    released: tuple[int, ...] = Field(description="nights whose rows went back into the queue")
    reservoir: Reservoir = Field(Reservoir(), description="of the rows that were trained on")
    consolidates: bool = Field(False, description="the night trains the original on the reservoir")

    @property
    def night(self) -> int:
        """Number of the night it is of."""
        return len(self.nights)

    @property
    def rows(self) -> int:
        """How many rows the line has read."""
        return sum(night.rows for night in self.nights)


EMPTY = Ledger(nights=(), ledgers=(), counts=(), queue=(), released=())
"""What the first night builds on."""


@dataclass(frozen=True)
class Decision:
    """What a night decided of one row."""

    number: int
    decided: Decided
    reason: str = ""
    of: int = -1
    """Number of the row that it repeats."""


def read_ledger(folder: Path) -> Ledger:
    """Read the ledger of an artifact."""
    return Ledger.model_validate_json((folder / LEDGER).read_bytes())


def write_ledger(folder: Path, ledger: Ledger, decisions: Iterable[Decision]) -> None:
    """Write a ledger and its decisions.

    Raises:
        ArtifactError: If the fates do not add up to the rows.
    """
    import pyarrow as pa
    from pyarrow.parquet import write_table

    counted = sum(count.rows for count in ledger.counts)
    if counted != ledger.rows:
        raise ArtifactError(
            f"ledger of night {ledger.night}: {counted} fates of {ledger.rows} rows: one is lost "
            "or counted twice, so nothing is taken; this is an error of requant, please report it"
        )
    (folder / LEDGER).write_bytes(canonical_json(ledger.model_dump(mode="json")))
    ordered = sorted(decisions, key=lambda each: each.number)
    columns = {
        "number": pa.array([each.number for each in ordered], pa.int64()),
        "decided": pa.array([each.decided for each in ordered], pa.string()),
        "reason": pa.array([each.reason for each in ordered], pa.string()),
        "of": pa.array([each.of for each in ordered], pa.int64()),
    }
    write_table(pa.table(columns), folder / DECISIONS, compression="zstd")


def read_decisions(folder: Path, decided: Iterable[Decided] | None = None) -> list[Decision]:
    """Read what a night decided, by row number: all of it, or decisions of some kinds."""
    from pyarrow.parquet import read_table

    filters = None if decided is None else [("decided", "in", sorted(decided))]
    table = read_table(folder / DECISIONS, filters=filters)
    return [Decision(**item) for item in table.to_pylist()]


def rows_of(
    store: Store, ledger: Ledger, numbers: Iterable[int]
) -> Iterator[tuple[int, CollectedRow]]:
    """Yield rows with their numbers, in ascending order, out of the artifacts of their nights.

    Raises:
        ArtifactError: If the store does not hold the rows of a night.
    """
    for night, group in groupby(sorted(numbers), key=lambda number: read_night(ledger, number)):
        read, of_night = ledger.nights[night - 1], list(group)
        path = materialise(store, read.artifact) / ROWS
        found = rows_at(path, [number - read.first for number in of_night])
        yield from zip(of_night, found, strict=True)


def read_night(ledger: Ledger, number: int) -> int:
    """Return the number of the night that read a row, from 1."""
    return bisect_right(ledger.nights, number, key=lambda night: night.first)
