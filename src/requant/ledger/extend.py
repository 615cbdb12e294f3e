"""Bringing new rows into the index: own runs are written, older ones merged as they are due."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from requant.errors import ContractError
from requant.ledger.batch import Batch
from requant.ledger.index import (
    BANDS,
    CONTENTS,
    GRAMS,
    OCCURRENCES,
    OTHERS,
    ROWS,
    Index,
    OpenArtifact,
    Run,
    Signed,
    packed,
)
from requant.ledger.nearest import write_signatures
from requant.ledger.runs import (
    KEYS,
    PARTS,
    Columns,
    merged,
    sizes_of_parts,
    weights_of_parts,
    write_run,
)
from requant.ledger.tiers import due
from requant.ledger.verdicts import Verdicts
from requant.ledger.words import Flags, Keys, Places

MOST_ROWS = 1 << 32


def extend(
    index: Index,
    open_artifact: OpenArtifact,
    batch: Batch,
    verdicts: Verdicts,
    kept: Flags,
    measured: Keys,
    out: Path,
) -> Index:
    """Add rows to an index.

    Args:
        index: Of all earlier rows.
        open_artifact: Folder of an artifact, by digest.
        batch: The rows.
        verdicts: What `look_up` said of them.
        kept: Which are trained on, held out, set aside or wait: bool [rows].
        measured: Runs of those that are held out, `requant.ledger.grams.measured_grams`.
        out: Where runs are written, below `index/`. If rows come in several batches, it also holds
            the runs of earlier ones; those of them that are merged here are deleted.

    Returns:
        The index of all rows.

    Raises:
        ContractError: If the ledger has more rows than row numbers of 32 bits.
    """
    if len(batch.numbers) and batch.numbers[-1] >= MOST_ROWS:
        raise ContractError(
            f"ledger: row {batch.numbers[-1]} is one too many; expected at most {MOST_ROWS} rows "
            "in one ledger: begin a new one"
        )
    numbers = batch.numbers.astype(np.uint32)
    fresh, first = ~verdicts.seen, ~verdicts.seen & (verdicts.known < 0)
    bands = batch.bands[kept]
    added: dict[str, Columns] = {
        OCCURRENCES: {KEYS: batch.occurrences[fresh]},
        CONTENTS: {
            KEYS: batch.contents[first, 0],
            OTHERS: batch.contents[first, 1],
            ROWS: numbers[first],
        },
        BANDS: {KEYS: bands.ravel(), ROWS: np.repeat(numbers[kept], bands.shape[1])},
        GRAMS: {KEYS: measured},
    }
    runs = {
        kind: _extended(
            index.runs[kind], open_artifact, columns, out, f"index/{kind}-{index.steps}"
        )
        for kind, columns in added.items()
    }
    signed = index.signed
    if kept.any():
        path = f"index/signatures-{index.steps}"
        write_signatures(out / path, numbers[kept], batch.signatures[kept])
        signed = (*signed, Signed("", path, int(kept.sum()), int(numbers[kept][-1])))
    return replace(index, steps=index.steps + 1, runs=runs, signed=signed)


def _extended(
    runs: Sequence[Run], open_artifact: OpenArtifact, new: Columns, out: Path, path: str
) -> tuple[Run, ...]:
    """Write one run of new entries and of what is merged with them; return all live runs."""
    if not len(new[KEYS]):
        return tuple(runs)
    folders = [open_artifact(run.digest) / run.path for run in runs]
    live = np.array([run.parts for run in runs], bool).reshape(-1, PARTS)
    sizes = _by_run([sizes_of_parts(folder) for folder in folders]) * live
    weights = _by_run([weights_of_parts(folder) for folder in folders]) * live
    chosen = due(sizes, weights, len(new[KEYS]))
    columns = merged(list(zip(folders, chosen, strict=True)), new)
    write_run(out / path, columns, len(new[KEYS]) + (weights * chosen).sum(axis=0))
    left = []
    for run, folder, size, parts in zip(runs, folders, sizes, live & ~chosen, strict=True):
        entries = int(size[parts].sum())
        if entries:
            left.append(replace(run, entries=entries, live=packed(parts)))
        elif not run.digest:
            shutil.rmtree(folder)
    return (*left, Run("", path, len(columns[KEYS]), packed(np.ones(PARTS, bool))))


def _by_run(parts: list[Places]) -> Places:
    return np.array(parts, np.int64).reshape(-1, PARTS)
