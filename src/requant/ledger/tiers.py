"""Which parts of older runs a night merges with its own: few runs to look into, and bounded work.

In each part of the keys a run is merged with all that is younger once it holds at most half as
much again as they do together, as a binary counter carries. So what stays grows geometrically
with age: about log2(nights) runs are looked into, and an entry is written again about once for each
doubling of the ledger.

The carry of a whole counter would make one night in many slow: it merges 64 nights. So a night
writes at most `AGAIN` old entries for each new one, the parts with the most runs first; the others
wait, and the carries of the 256 parts spread over the nights. Simulated over 1,000 nights of
100,000 rows: a key is looked for in 6.5 runs on average and 14 in the worst night, and 4 old
entries are written for each new one; over 365 nights in 5.7 and 13.
"""

import numpy as np

from requant.ledger.runs import PARTS
from requant.ledger.words import Flags, Places

AGAIN = 8
FEW = 1 << 22
"""Entries that a night of few rows may write again too: a second. A part that holds more than the
limit would stay as it is: beyond 10**9 entries, 80 million rows, where nights are small."""


def due(sizes: Places, weights: Places, new: int, again: int = AGAIN, few: int = FEW) -> Flags:
    """Choose what is merged tonight.

    Args:
        sizes: Live entries of each run, the oldest first, in each part: int64 [runs, 256].
        weights: Entries, in all parts, of the nights that those come from: what the sizes would be
            without chance, so that nights of equal size carry in all parts at once; 0 where a part
            is dead: int64 [runs, 256].
        new: Tonight's entries.
        again: Old entries that are written again for each new one, at most.
        few: Old entries that may be written again in any case.

    Returns:
        bool [runs, 256].
    """
    chosen = np.zeros_like(sizes, dtype=bool)
    together, carrying = np.full(PARTS, new), np.ones(PARTS, bool)
    for run in range(len(sizes) - 1, -1, -1):
        carrying &= 2 * weights[run] <= 3 * together
        chosen[run] = carrying & (weights[run] > 0)
        together += np.where(carrying, weights[run], 0)
    work, left = np.where(chosen, sizes, 0).sum(axis=0), max(again * new, few)
    for part in np.argsort(-(sizes > 0).sum(axis=0), kind="stable"):
        if work[part] <= left:
            left -= int(work[part])
        else:
            chosen[:, part] = False
    return chosen
