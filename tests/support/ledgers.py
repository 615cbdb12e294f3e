"""Ledgers of a few rows, in folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from requant.data.formats import Row
from requant.ledger.batch import Batch, batch_of
from requant.ledger.extend import extend
from requant.ledger.grams import measured_grams
from requant.ledger.index import Index, read_index, write_index
from requant.ledger.keys import content_keys, occurrence_keys
from requant.ledger.near import algorithm
from requant.ledger.verdicts import Verdicts, look_up
from requant.ledger.words import Keys

THRESHOLD = 0.8
NOTHING = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Ledger:
    """A chain of nights, whose artifacts are folders named by their digests."""

    root: Path
    index: Index
    rows: int = 0
    nights: int = 0


def batch_at(rows: Sequence[Row], places: Sequence[str], first: int) -> Batch:
    """The keys of rows that were read at some places; the first one has a number, others follow."""
    contents = content_keys(rows)
    numbers = np.arange(first, first + len(rows))
    return batch_of(numbers, rows, contents, occurrence_keys(contents, places), THRESHOLD)


def empty(root: Path) -> Ledger:
    return Ledger(root, Index(algorithm(THRESHOLD)))


def asked(
    ledger: Ledger,
    rows: Sequence[Row],
    places: Sequence[str] = (),
    heldout: Sequence[int] = (),
    measured: Keys = NOTHING,
) -> Verdicts:
    """What the ledger says of rows, each at a place of its own if none is named."""
    batch = batch_at(rows, places or new_places(ledger, rows), ledger.rows)
    held = np.isin(np.arange(len(rows)), heldout)
    own = np.sort(np.concatenate([measured, measured_grams([rows[row] for row in heldout])]))
    return look_up(ledger.index, ledger.root.joinpath, batch, held, own)


def taken(
    ledger: Ledger,
    rows: Sequence[Row],
    places: Sequence[str] = (),
    heldout: Sequence[int] = (),
) -> tuple[Ledger, Verdicts]:
    """The ledger after a night that keeps whatever nothing speaks against."""
    said = asked(ledger, rows, places, heldout)
    batch = batch_at(rows, places or new_places(ledger, rows), ledger.rows)
    digest = f"night-{ledger.nights}"
    out = ledger.root / digest
    out.mkdir(parents=True)
    measured = measured_grams([rows[row] for row in heldout if said.keep[row]])
    index = extend(ledger.index, ledger.root.joinpath, batch, said, said.keep, measured, out)
    write_index(index, out)
    index = read_index(out, digest, THRESHOLD)
    return Ledger(ledger.root, index, ledger.rows + len(rows), ledger.nights + 1), said


def new_places(ledger: Ledger, rows: Sequence[Row]) -> list[str]:
    return [f"{ledger.nights} {row}" for row in range(len(rows))]


def text(words: str) -> Row:
    return {"text": words}
