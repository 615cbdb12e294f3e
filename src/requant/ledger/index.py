"""The index of a ledger: what all its rows are found by, in files of several nights.

Every night writes its own runs (`requant.ledger.runs`), with those parts of older ones that are due
to be merged (`requant.ledger.tiers`), and names the runs that are live. There are four kinds:

| kind        | key                          | beside it             | of which rows            |
|-------------|------------------------------|-----------------------|--------------------------|
| occurrences | content and place            |                       | all that were seen       |
| contents    | first half of the content's  | the other half; row   | the first of a content   |
| bands       | a band of the MinHash        | row                   | kept                     |
| grams       | 13 words                     |                       | held out                 |

Kept are the rows that were trained on, held out, set aside or wait; not those that were dropped.
Their signatures lie one file a night, never merged: one is found by its row's number.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from requant.canonical import canonical_json
from requant.errors import ContractError
from requant.ledger.near import algorithm
from requant.ledger.runs import PARTS, Matches, match
from requant.ledger.words import Flags, Keys

OCCURRENCES, CONTENTS, BANDS, GRAMS = KINDS = ("occurrences", "contents", "bands", "grams")
ROWS, OTHERS = "rows", "others"
"""Columns beside the keys."""
TABLE = "index.json"
FIELDS = {
    "threshold": "extend_ledger.near_duplicates (null is 0.99)",
    "minhash": "version of rensa's MinHash",
    "words": "how words are told apart, by the version of Python",
}
"""What a person sets, or installs, of what decides keys."""
OpenArtifact = Callable[[str], Path]
"""Folder of an artifact by its digest; by "" the one that is being written."""


@dataclass(frozen=True)
class Run:
    """A run and its live parts."""

    digest: str
    """Artifact that holds the run; "" for the one that is being written."""
    path: str
    entries: int
    """Live ones."""
    live: str
    """Hexadecimal number, bit p of which says whether part p is live."""

    @property
    def parts(self) -> Flags:
        """Whether each part is live: bool [256]."""
        bits = int(self.live, 16).to_bytes(PARTS // 8, "little")
        return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(bool)


@dataclass(frozen=True)
class Signed:
    """The signatures of rows that were kept at once."""

    digest: str
    path: str
    rows: int
    last: int
    """Number of the last row."""


@dataclass(frozen=True)
class Index:
    """What is live; without a run, the index of a ledger without a row."""

    algorithm: Mapping[str, Any]
    """`requant.ledger.near.algorithm`."""
    steps: int = 0
    """How often it was extended: no two runs of a ledger have one path."""
    runs: Mapping[str, tuple[Run, ...]] = field(default_factory=lambda: dict.fromkeys(KINDS, ()))
    """By kind, the oldest first."""
    signed: tuple[Signed, ...] = ()
    """The oldest first."""

    @property
    def digests(self) -> set[str]:
        """Artifacts that must be kept for this index."""
        of_runs = {run.digest for kind in self.runs.values() for run in kind}
        return (of_runs | {night.digest for night in self.signed}) - {""}


Stored = TypeVar("Stored", Run, Signed)


def matches(
    index: Index, open_artifact: OpenArtifact, kind: str, asked: Keys, most: int
) -> Iterator[Matches]:
    """Find the entries of sorted keys in one live run after another, `most` of a key in each."""
    for run in index.runs[kind]:
        yield match(open_artifact(run.digest) / run.path, run.parts, asked, most)


def packed(parts: Flags) -> str:
    """Spell the live parts of a run, bool [256]."""
    bits = np.packbits(parts, bitorder="little").tobytes()
    return f"{int.from_bytes(bits, 'little'):064x}"


def write_index(index: Index, folder: Path) -> None:
    """Write the table of an index beside its runs."""
    (folder / TABLE).write_bytes(canonical_json(asdict(index)) + b"\n")


def read_index(folder: Path, digest: str, threshold: float) -> Index:
    """Read the index in an artifact.

    Args:
        folder: Of the artifact.
        digest: Of the artifact, by which its own runs are found from now on.
        threshold: Jaccard index from which on tonight's rows are near-duplicates.

    Raises:
        ContractError: If its keys were made in another way than tonight's are.
    """
    index = index_at(folder, digest)
    was, now = index.algorithm, algorithm(threshold)
    if was != now:
        differing = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
        if "threshold" in differing:
            # It decides these.
            differing = [name for name in differing if name not in ("bands", "band_size")]
        lines = "\n".join(
            f"  {FIELDS.get(name, name)}: {was.get(name)}, tonight {now.get(name)}"
            for name in differing
        )
        raise ContractError(
            f"ledger {digest[:12]}: its rows are known by keys that are made otherwise tonight, "
            f"so none of them would be known again:\n{lines}\nTake that back; or give the line "
            "another `name`, under which it begins a ledger anew, with every row of its sources"
        )
    return index


def index_at(folder: Path, digest: str) -> Index:
    """Read the index in an artifact, however its keys were made.

    Args:
        folder: Of the artifact.
        digest: Of the artifact, by which its own runs are found from now on.
    """
    table = json.loads((folder / TABLE).read_bytes())
    runs = {
        kind: tuple(_placed(Run(**run), digest) for run in found)
        for kind, found in table["runs"].items()
    }
    signed = tuple(_placed(Signed(**each), digest) for each in table["signed"])
    return Index(table["algorithm"], table["steps"], runs, signed)


def _placed(each: Stored, digest: str) -> Stored:
    return replace(each, digest=each.digest or digest)
