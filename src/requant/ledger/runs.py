"""Sorted runs of keys on disk, read by parts, so that memory does not grow with a run.

A run is a folder of columns: `keys.npy`, uint64, sorted, and beside it what belongs to each key,
such as `rows.npy`. `starts.npy` says where each of 256 parts starts, by the keys' first byte (keys
are hashes, so parts are of one size but for chance), `weights.npy` what `requant.ledger.tiers`
needs. A run is never changed; a later run that holds some of its parts, merged with others, makes
those parts dead.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from requant.ledger.words import Flags, Keys, Places, starts_of

PARTS = 256
STARTS, WEIGHTS = "starts", "weights"
KEYS = "keys"
HELD = 1 << 25
"""Bytes of a run that stay mapped."""
Columns = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Matches:
    """Entries of a run that have a key that was asked for."""

    which: Places
    """Index of the key among those asked for, ascending."""
    columns: Columns
    """Of the entries, in the same order."""
    left_out: int
    """Entries beyond the most that were wanted of one key."""


def write_run(folder: Path, columns: Columns, weights: Places) -> None:
    """Write a run.

    Args:
        folder: New.
        columns: Sorted by their keys.
        weights: Of its parts: int64 [256].
    """
    folder.mkdir(parents=True)
    keys = columns[KEYS].astype(np.uint64, copy=False)
    for name, values in {STARTS: starts_of_parts(keys), WEIGHTS: weights, **columns}.items():
        np.save(folder / f"{name}.npy", values)


def starts_of_parts(keys: Keys) -> Places:
    """Where each part of sorted keys starts, and where the last one ends: int64 [257]."""
    fences = np.arange(PARTS, dtype=np.uint64) << np.uint64(56)
    return np.append(np.searchsorted(keys, fences), len(keys)).astype(np.int64)


def sizes_of_parts(folder: Path) -> Places:
    """Number of entries in each part: int64 [256]."""
    return np.diff(np.load(folder / f"{STARTS}.npy"))


def weights_of_parts(folder: Path) -> Places:
    """Entries of the nights that each part comes from: int64 [256]."""
    weights: Places = np.load(folder / f"{WEIGHTS}.npy")
    return weights


def read_parts(folder: Path, wanted: Flags) -> Iterator[tuple[int, Columns]]:
    """Map the columns of one part after another; no more than `HELD` bytes of parts stay mapped.

    Args:
        folder: Of the run.
        wanted: bool [256].
    """
    starts, columns = np.load(folder / f"{STARTS}.npy"), _mapped(folder)
    held = 0
    for part in np.flatnonzero(wanted & (np.diff(starts) > 0)):
        entries = {name: of[starts[part] : starts[part + 1]] for name, of in columns.items()}
        yield int(part), entries
        held += sum(column.nbytes for column in entries.values())
        if held > HELD:
            held = 0
            for column in columns.values():
                let_go(column)


def let_go(mapped: npt.NDArray[np.generic]) -> None:
    """Give back the memory of a mapped file; what is read again is mapped again."""
    if isinstance(mapped.base, mmap.mmap):
        mapped.base.madvise(mmap.MADV_DONTNEED)


def match(folder: Path, wanted: Flags, asked: Keys, most: int) -> Matches:
    """Find the entries of some keys.

    Args:
        folder: Of the run.
        wanted: Parts that are looked into, bool [256].
        asked: Sorted.
        most: Entries of one key that are returned: the first ones, so the oldest.
    """
    cuts = starts_of_parts(asked)
    which, left_out = [np.empty(0, np.int64)], 0
    columns = {name: [column[:0]] for name, column in _mapped(folder).items()}
    for part, entries in read_parts(folder, wanted & (np.diff(cuts) > 0)):
        keys, queries = entries[KEYS], asked[cuts[part] : cuts[part + 1]]
        first = np.searchsorted(keys, queries)
        hit = np.flatnonzero(keys[np.minimum(first, len(keys) - 1)] == queries)
        there = np.searchsorted(keys, queries[hit], "right") - first[hit]
        counts = np.minimum(there, most)
        left_out += int((there - counts).sum())
        within = np.arange(counts.sum()) - np.repeat(starts_of(counts)[:-1], counts)
        places = np.repeat(first[hit], counts) + within
        which.append(cuts[part] + np.repeat(hit, counts))
        for name, column in entries.items():
            columns[name].append(column[places])
    found = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Matches(np.concatenate(which), found, left_out)


def merged(old: Sequence[tuple[Path, Flags]], new: Columns) -> Columns:
    """Merge parts of runs with new entries, in memory; of equal keys the older come first.

    Args:
        old: Folders of runs and their parts that are merged, bool [256], the oldest first.
        new: Entries in any order.
    """
    count = sum(int(sizes_of_parts(folder)[parts].sum()) for folder, parts in old)
    columns = {
        name: np.empty((count + len(values), *values.shape[1:]), values.dtype)
        for name, values in new.items()
    }
    at = 0
    for entries in chain((part for run in old for _, part in read_parts(*run)), [new]):
        for name, values in entries.items():
            columns[name][at : at + len(values)] = values
        at += len(entries[KEYS])
    order = np.argsort(columns[KEYS], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _mapped(folder: Path) -> Columns:
    paths = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    return {
        name: np.load(path, mmap_mode="r")
        for name, path in paths.items()
        if name not in {STARTS, WEIGHTS}
    }
