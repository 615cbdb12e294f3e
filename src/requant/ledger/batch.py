"""Keys of some new rows: all that the index must know of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from requant.data.formats import Row
from requant.ledger.grams import grams
from requant.ledger.keys import content_keys, occurrence_keys
from requant.ledger.near import Signatures, sketched
from requant.ledger.words import Keys, Lists, Places, joined, words_of

SLICE = 4096
"""Rows whose words are in memory at once."""


@dataclass(frozen=True)
class Batch:
    """New rows, in their order. Of 100,000 rows of 100 words it takes 120 MB."""

    numbers: Places
    """Row numbers in the ledger, ascending, above those of all earlier rows: int64 [rows]."""
    contents: Keys
    """uint64 [rows, 2]."""
    occurrences: Keys
    """uint64 [rows]."""
    bands: Keys
    """uint64 [rows, bands]."""
    signatures: Signatures
    """uint8 [rows, 128]."""
    grams: Lists
    """Runs of 13 words of each row."""


def batch_of(rows: Sequence[Row], places: Sequence[str], first: int, threshold: float) -> Batch:
    """Compute the keys of rows.

    Args:
        rows: In the one shape of this project.
        places: Where each was read; the same row at the same place is the same occurrence.
        first: Number of the first row in the ledger; the others follow.
        threshold: Jaccard index from which on two rows are near-duplicates.
    """
    contents, bands, signatures, found = [], [], [], []
    for start in range(0, max(len(rows), 1), SLICE):
        part = rows[start : start + SLICE]
        words, keys = words_of(part), content_keys(part)
        of_bands, of_signatures = sketched(words, keys, threshold)
        contents.append(keys)
        bands.append(of_bands)
        signatures.append(of_signatures)
        found.append(grams(words, keys))
    every = np.concatenate(contents)
    return Batch(
        numbers=np.arange(first, first + len(rows)),
        contents=every,
        occurrences=occurrence_keys(every, places),
        bands=np.concatenate(bands),
        signatures=np.concatenate(signatures),
        grams=joined(found),
    )
