"""Keys of rows and of their occurrences: the same content anywhere, the same place again."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from requant.data.formats import Row
from requant.data.overlap import normalised
from requant.ledger.words import Keys


def content_keys(rows: Iterable[Row]) -> Keys:
    """Hash what rows say, case and white space evened out.

    blake2b of `requant.data.overlap.normalised`, 128 bits: among 10**10 rows two of different
    content have one key with probability 10**-19, and nobody can write a row that hides another.

    Returns:
        uint64 [rows, 2].
    """
    digests = b"".join(blake2b(normalised(row).encode(), digest_size=16).digest() for row in rows)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def occurrence_keys(contents: Keys, places: Iterable[str]) -> Keys:
    """Hash what was read, and where.

    A row that is at its place again is not a row that was seen twice.

    Args:
        contents: Content keys, uint64 [rows, 2].
        places: File and line, or table and primary key, one for each row.

    Returns:
        uint64 [rows]; among 10**7 rows one of 10**5 new ones is confused once in 10**7 nights.
    """
    digests = b"".join(
        blake2b(content.tobytes() + place.encode(), digest_size=8).digest()
        for content, place in zip(contents, places, strict=True)
    )
    return np.frombuffer(digests, "<u8")
