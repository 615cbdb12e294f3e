"""Keys of the rows of a night, those that cannot be used among them."""

from collections.abc import Mapping

import numpy as np

from requant.ledger.batch import Batch, batch_of
from requant.ledger.rows import CollectedRow

NOTHING = {"text": ""}
"""In place of a row that cannot be used; what it is known by are its bytes."""


def keyed(rows: Mapping[int, CollectedRow], threshold: float) -> Batch:
    """Compute what rows are compared by, and take what they are known by as it was collected.

    Args:
        rows: Number to row, ascending.
        threshold: Jaccard index from which on two rows are near-duplicates.
    """
    given = [NOTHING if row.row is None else row.row for row in rows.values()]
    return batch_of(
        numbers=np.array([*rows], np.int64),
        rows=given,
        contents=np.array([row.content for row in rows.values()], np.uint64).reshape(-1, 2),
        occurrences=np.array([row.occurrence for row in rows.values()], np.uint64),
        threshold=threshold,
    )
