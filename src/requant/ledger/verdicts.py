"""What the index says of new rows: seen, known, near-duplicate or contaminated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from requant.data.formats import Row
from requant.ledger.batch import Batch
from requant.ledger.grams import COMMON, counted, grams, telling
from requant.ledger.index import (
    CONTENTS,
    GRAMS,
    OCCURRENCES,
    OTHERS,
    ROWS,
    Index,
    OpenArtifact,
    index_at,
    matches,
)
from requant.ledger.keys import content_keys
from requant.ledger.nearest import Nearest, among, in_index
from requant.ledger.words import Flags, Keys, Lists, Places, words_of
from requant.store import Store, materialise
from requant.store.objects import read_manifest


@dataclass(frozen=True)
class Verdicts:
    """What is known of each row of a batch; several things may hold at once."""

    seen: Flags
    """The same content at the same place: not a new row at all."""
    known: Places
    """Number of the first row of the same content, or -1."""
    shared: npt.NDArray[np.int32]
    """Runs of 13 words that measured text holds."""
    contaminated: Flags
    """Not held out, and shares a run with measured text."""
    nearest: Nearest
    """The kept row that it is most like, if it is a near-duplicate."""
    left_out: int
    """Candidates that were not looked at, as too many rows share a band."""

    @property
    def keep(self) -> Flags:
        """Rows against which nothing speaks."""
        return ~(self.seen | (self.known >= 0) | self.contaminated | (self.nearest.row >= 0))


def look_up(
    index: Index, open_artifact: OpenArtifact, batch: Batch, heldout: Flags, measured: Keys
) -> Verdicts:
    """Hold new rows against all earlier ones, and against those before them in the batch.

    Row by row: it is seen or known if an earlier row is its equal; contaminated if it shares a run
    of 13 words with measured text, wherever that stands; a near-duplicate if it is like a row that
    is kept. A row that is dropped itself makes no other a near-duplicate: of A, B, C, of which only
    neighbours are alike, B is dropped and C kept. So the order of rows decides which of a group is
    kept, and can decide how many.

    Args:
        index: Of all earlier rows.
        open_artifact: Folder of an artifact, by digest; of "" the one tonight's runs lie in.
        batch: The rows.
        heldout: Which would be held out if they are kept: bool [rows].
        measured: Sorted runs of the evaluation's texts and of tonight's rows that would be held
            out (`requant.ledger.grams`); those of earlier nights are in the index.
    """
    again = seen_before(index, open_artifact, batch.occurrences)
    seen = again | _repeated(batch.occurrences)
    known = _known(index, open_artifact, batch)
    shared = shared_runs(index, open_artifact, batch, measured)
    contaminated = ~heldout & (shared > 0)
    eligible = ~(seen | (known >= 0) | contaminated)
    old, old_left_out = in_index(index, open_artifact, batch, eligible)
    nearest, left_out = among(index, batch, eligible, old)
    return Verdicts(seen, known, shared, contaminated, nearest, old_left_out + left_out)


def seen_before(index: Index, open_artifact: OpenArtifact, occurrences: Keys) -> Flags:
    """Tell which occurrences an earlier night has read: bool [rows].

    Args:
        index: Of all earlier rows.
        open_artifact: Folder of an artifact, by digest.
        occurrences: uint64 [rows], in any order.
    """
    order = np.argsort(occurrences, kind="stable")
    seen = np.zeros(len(occurrences), bool)
    for found in matches(index, open_artifact, OCCURRENCES, occurrences[order], most=1):
        seen[order[found.which]] = True
    return seen


def _repeated(occurrences: Keys) -> Flags:
    """Tell which occurrences stand earlier in the same batch."""
    again = np.ones(len(occurrences), bool)
    again[np.unique(occurrences, return_index=True)[1]] = False
    return again


def _known(index: Index, open_artifact: OpenArtifact, batch: Batch) -> Places:
    firsts: dict[tuple[int, ...], int] = {}
    contents = map(tuple, batch.contents.tolist())
    first = np.array([firsts.setdefault(key, row) for row, key in enumerate(contents)], np.int64)
    known = np.where(first < np.arange(len(first)), batch.numbers[first], -1)
    order = np.argsort(batch.contents[:, 0])
    for found in matches(index, open_artifact, CONTENTS, batch.contents[order, 0], most=2):
        rows = order[found.which]
        same = found.columns[OTHERS] == batch.contents[rows, 1]
        known[rows[same]] = found.columns[ROWS][same]
    return known


def shared_runs(
    index: Index, open_artifact: OpenArtifact, batch: Batch, measured: Keys
) -> npt.NDArray[np.int32]:
    """Count the runs of each row that measured text holds: int32 [rows]; see `look_up`."""
    return _shared(index, open_artifact, batch.grams, measured)


def not_held_out(store: Store, ledger: Path, rows: Sequence[Row]) -> list[Row]:
    """Return the rows that share no run of 13 words with what a line holds out, of any night.

    Args:
        store: Of the line.
        ledger: Its artifact.
        rows: From elsewhere, which the ledger does not know.
    """
    index = index_at(ledger, read_manifest(ledger).digest)
    found = grams(words_of(rows), content_keys(rows))
    counts = _shared(index, partial(materialise, store), found, np.empty(0, np.uint64))
    return [row for row, count in zip(rows, counts, strict=True) if not count]


def _shared(
    index: Index, open_artifact: OpenArtifact, found: Lists, measured: Keys
) -> npt.NDArray[np.int32]:
    asked = np.unique(found.values)
    texts = np.zeros(len(asked), np.int64)
    for held in matches(index, open_artifact, GRAMS, asked, most=COMMON + 1):
        texts += np.bincount(held.which, minlength=len(asked))
    telltale = asked[telling(texts) | telling(counted(asked, measured))]
    rows = found.owners[counted(found.values, telltale) > 0]
    return np.bincount(rows, minlength=len(found.sizes)).astype(np.int32)
