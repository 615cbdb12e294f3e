"""The kept row that a new row is most like, among those of earlier nights and of its own batch."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from requant.ledger.batch import Batch
from requant.ledger.index import BANDS, ROWS, Index, OpenArtifact, matches
from requant.ledger.near import Estimates, Signatures, similarity
from requant.ledger.runs import let_go
from requant.ledger.words import Flags, Places

MOST = 16
"""Rows with one band key that a new row is held against, in each run and in the batch. Rows of one
template share a band with thousands; near-duplicates share several, of which one is rare: among
20,000 rows of which 70 words in 100 are the same all of 2,000 edited copies were found."""
LOWER = np.uint64((1 << 32) - 1)
PIECE = 1 << 16
"""Pairs of signatures in memory at once: 16 MB."""


@dataclass(frozen=True)
class Nearest:
    """For each row of a batch the kept row that it is a near-duplicate of."""

    row: Places
    """Number in the ledger of the row most alike, the first of equals; -1 where none is near."""
    similarity: Estimates
    """Estimated Jaccard index of the two, or 0."""


def write_signatures(folder: Path, rows: npt.NDArray[np.uint32], signatures: Signatures) -> None:
    """Write the signatures of rows, by ascending row number."""
    folder.mkdir(parents=True)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "signatures.npy", signatures)


def in_index(
    index: Index, open_artifact: OpenArtifact, batch: Batch, eligible: Flags
) -> tuple[Nearest, int]:
    """Find near-duplicates of earlier rows; return them and how many candidates were left out."""
    rows = np.flatnonzero(eligible)
    bands = batch.bands[rows]
    owners, order = np.repeat(rows, bands.shape[1]), np.argsort(bands, axis=None)
    pairs, left_out = [np.empty(0, np.uint64)], 0
    for found in matches(index, open_artifact, BANDS, bands.ravel()[order], MOST):
        # One number a pair: those that several bands bring together are one again.
        pair = found.columns[ROWS].astype(np.uint64) << np.uint64(32)
        pairs.append(np.unique(pair | owners[order[found.which]].astype(np.uint64)))
        left_out += found.left_out
    every = np.unique(np.concatenate(pairs))
    old, new = (every >> np.uint64(32)).astype(np.int64), (every & LOWER).astype(np.int64)
    alike = np.zeros(len(every), np.float32)
    start = 0
    for night in index.signed:
        end = int(np.searchsorted(old, night.last, "right"))
        if start < end:
            folder, these = open_artifact(night.digest) / night.path, slice(start, end)
            alike[these] = _compared(folder, old[these], batch.signatures, new[these])
        start = end
    near = alike >= index.algorithm["threshold"]
    old, new, alike = old[near], new[near], alike[near]
    best = np.lexsort((old, -alike, new))
    of_row, first = np.unique(new[best], return_index=True)
    nearest = _nobody(len(eligible))
    nearest.row[of_row], nearest.similarity[of_row] = old[best][first], alike[best][first]
    return nearest, left_out


def among(index: Index, batch: Batch, eligible: Flags, old: Nearest) -> tuple[Nearest, int]:
    """Find near-duplicates of earlier rows of the batch that are kept themselves.

    Args:
        index: Names the threshold.
        batch: The rows.
        eligible: Neither seen, known nor contaminated: bool [rows].
        old: Near-duplicates of rows in the index, which are returned as they are.

    Returns:
        Near-duplicates of both, and how often a row was not remembered for a band, so that no later
        row is held against it.
    """
    row, alike = old.row.copy(), old.similarity.copy()
    candidates = np.flatnonzero(eligible & (old.row < 0))
    bands = batch.bands[candidates]
    _, places, counts = np.unique(bands, return_inverse=True, return_counts=True)
    places = places.reshape(bands.shape)
    kept: dict[int, list[int]] = defaultdict(list)
    left_out = 0
    for at in np.flatnonzero((counts[places] > 1).any(axis=1)):
        this, mine = candidates[at], places[at][counts[places[at]] > 1].tolist()
        others = sorted({other for key in mine for other in kept[key]})
        if others:
            estimates = similarity(batch.signatures[others], batch.signatures[this])
            best = int(estimates.argmax())
            if estimates[best] >= index.algorithm["threshold"]:
                row[this], alike[this] = batch.numbers[others[best]], estimates[best]
                continue
        for key in mine:
            if len(kept[key]) < MOST:
                kept[key].append(int(this))
            else:
                left_out += 1
    return Nearest(row, alike), left_out


def _compared(folder: Path, old: Places, signatures: Signatures, new: Places) -> Estimates:
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    stored = np.load(folder / "signatures.npy", mmap_mode="r")
    alike = np.empty(len(old), np.float32)
    for start in range(0, len(old), PIECE):
        these = slice(start, start + PIECE)
        places = np.searchsorted(rows, old[these].astype(np.uint32))
        alike[these] = similarity(stored[places], signatures[new[these]])
        let_go(stored)
        let_go(rows)
    return alike


def _nobody(rows: int) -> Nearest:
    return Nearest(np.full(rows, -1, np.int64), np.zeros(rows, np.float32))
