"""Keys of some new rows: all that the index must know of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from requant.data.formats import Row
from requant.ledger.grams import grams
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


def batch_of(
    numbers: Places, rows: Sequence[Row], contents: Keys, occurrences: Keys, threshold: float
) -> Batch:
    """Compute what rows are compared by, beside what they are known by.

    Args:
        numbers: In the ledger, ascending: int64 [rows].
        rows: In the one shape of this project.
        contents: `requant.ledger.keys.content_keys` of them, uint64 [rows, 2].
        occurrences: `requant.ledger.keys.occurrence_keys` of them, uint64 [rows].
        threshold: Jaccard index from which on two rows are near-duplicates.
    """
    bands, signatures, found = [], [], []
    for start in range(0, max(len(rows), 1), SLICE):
        part = slice(start, start + SLICE)
        words, keys = words_of(rows[part]), contents[part]
        of_bands, of_signatures = sketched(words, keys, threshold)
        bands.append(of_bands)
        signatures.append(of_signatures)
        found.append(grams(words, keys))
    return Batch(
        numbers=numbers,
        contents=contents,
        occurrences=occurrences,
        bands=np.concatenate(bands),
        signatures=np.concatenate(signatures),
        grams=joined(found),
    )
