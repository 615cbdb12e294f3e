"""A ledger of ten million rows takes in 100,000 new ones: `python -m benchmarks ledger`.

The new rows are real sentences, mixed so that all differ but those that are planted: occurrences
that were seen, exact and near copies of old rows and of each other, and quotations of held-out
text. Old rows are random keys, as hashes are, in runs all of which are due to be merged, so that
the night is as slow as a night can be; each new row shares a band with two strangers in every
million. Yesterday's 20,000 rows are real, and what is planted repeats them. Nothing of the old
ledger is in the page cache. Needs 4 GB of disk.
"""

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurement import ROOT, Measurement
from requant.corpus import docstrings, topics
from requant.data.formats import Row
from requant.data.overlap import ngrams
from requant.data.rows import conversation
from requant.ledger.batch import Batch, batch_of
from requant.ledger.extend import extend
from requant.ledger.grams import GRAM, measured_grams
from requant.ledger.index import (
    BANDS,
    CONTENTS,
    KINDS,
    OTHERS,
    ROWS,
    Index,
    Run,
    Signed,
    packed,
    read_index,
    write_index,
)
from requant.ledger.keys import content_keys, occurrence_keys
from requant.ledger.near import algorithm, bands
from requant.ledger.nearest import write_signatures
from requant.ledger.runs import KEYS, PARTS, merged, write_run
from requant.ledger.verdicts import look_up

OLD, SMALL, NIGHT = 10_000_000, 1_000_000, 100_000
SECONDS, GIGABYTES, RATIO = 60, 1.5, 1.5
THRESHOLD = 0.8
YESTERDAY, HELDOUT = 20_000, 500
SENTENCES = 6
"""In an answer: about a hundred words a row."""
STRANGERS = 2
"""Old rows in a million that share a band with a new one."""
PLANTED = {
    "seen": 2_000,
    "known": 8_000,
    "near": 8_000,
    "contaminated": 2_000,
    "kept": 80_000,
}
"""Rows of each kind; 5,000 of the known and of the near ones repeat rows of yesterday."""


def measure() -> Measurement:
    """Take one night into ledgers of one and of ten million rows, by turns, the better of two."""
    with tempfile.TemporaryDirectory() as name:
        child(f"write_texts({name!r})")
        for rows in (SMALL, OLD):
            child(f"write_ledger({name!r}, {rows})")
        rounds = [[taken_in(Path(name), rows) for rows in (SMALL, OLD)] for _ in range(2)]
    small, large = (
        min(found, key=lambda each: each["seconds"]) for found in zip(*rounds, strict=True)
    )
    print(small, large, sep="\n", file=sys.stderr)
    ratio = large["seconds"] / small["seconds"]
    right = large["found"] == small["found"] == PLANTED
    return Measurement(
        claim=f"{NIGHT:,} rows into a ledger of {OLD:,}",
        measured=(
            f"{large['seconds']:.0f} s, {large['gigabytes']:.2f} GB; {ratio:.2f} times what "
            f"a ledger of {SMALL:,} takes; "
            f"{'all fates' if right else large['found']} as planted"
        ),
        limit=f"<= {SECONDS} s, {GIGABYTES} GB, {RATIO} times",
        holds=(
            large["seconds"] <= SECONDS
            and large["gigabytes"] <= GIGABYTES
            and ratio <= RATIO
            and right
        ),
    )


def taken_in(folder: Path, rows: int) -> dict[str, Any]:
    """Take a night into a ledger of so many rows, and forget it."""
    for path in (folder / str(rows)).rglob("*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found: dict[str, Any] = json.loads(child(f"take_in({str(folder)!r}, {rows})"))
    shutil.rmtree(folder / str(rows) / "tonight")
    return found


def child(call: str) -> str:
    """Run a function of this file in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-c", f"from benchmarks.ledger import *; {call}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{call} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def take_in(name: str, rows: int) -> None:
    """Print what a night costs: from lines of text to an index that holds them."""
    folder = Path(name, str(rows))
    out = folder / "tonight"
    out.mkdir()
    started = time.monotonic()
    # Whatever else a night does to take rows in, such as writing them, belongs between these marks.
    with Path(name, "tonight.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    index = read_index(folder / "yesterday", "yesterday", THRESHOLD)
    marks = {"read": time.monotonic()}
    batch = batch_at(lines, rows)
    marks["keys"] = time.monotonic()
    nothing = np.empty(0, np.uint64)
    said = look_up(index, folder.joinpath, batch, np.zeros(len(lines), bool), nothing)
    marks["look up"] = time.monotonic()
    index = extend(index, folder.joinpath, batch, said, said.keep, nothing, out)
    write_index(index, out)
    marks["extend"] = time.monotonic()
    copies = ~said.seen & (said.known >= 0)
    fates = {
        "seen": said.seen,
        "known": copies,
        "near": said.nearest.row >= 0,
        "contaminated": said.contaminated & ~copies & ~said.seen,
        "kept": said.keep,
    }
    ends = list(marks.values())
    seconds = np.diff([started, *ends]).round(1).tolist()
    print(
        json.dumps(
            {
                "seconds": ends[-1] - started,
                "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "found": {fate: int(rows.sum()) for fate, rows in fates.items()},
                "steps": dict(zip(marks, seconds, strict=True)),
                "left_out": said.left_out,
                "merged": {kind: runs[-1].entries for kind, runs in index.runs.items()},
            }
        )
    )


def write_texts(name: str) -> None:
    """Write yesterday's and tonight's rows, and tonight's band keys."""
    draw = random.Random(1)
    trained, held = sentences()

    def fresh(about: str, said: list[str]) -> Row:
        return conversation(f"What is known of {about}?", " ".join(said))

    def mix(number: int) -> Row:
        return fresh(f"subject {number}", draw.sample(trained, SENTENCES))

    heldout = [
        fresh(f"held {at}", held[SENTENCES * at : SENTENCES * (at + 1)]) for at in range(HELDOUT)
    ]
    old = [mix(number) for number in range(YESTERDAY - HELDOUT)]
    yesterday = [line(row, f"old:{at}") for at, row in enumerate([*heldout, *old])]
    new = [mix(YESTERDAY + number) for number in range(PLANTED["kept"])]
    seen, *copied = (old[start : start + 5_000] for start in (0, 5_000, 10_000))
    tonight = [line(row, f"new:{at}") for at, row in enumerate(new)]
    tonight += [line(row, f"old:{HELDOUT + at}") for at, row in enumerate(seen[: PLANTED["seen"]])]
    more = [*copied[0], *new[:3_000]]
    more += [edited(row, draw) for row in [*copied[1], *new[3_000:6_000]]]
    for number in range(PLANTED["contaminated"]):
        said = draw.sample(trained, SENTENCES - 1)
        said.insert(draw.randrange(SENTENCES), draw.choice(held[: SENTENCES * HELDOUT]))
        more.append(fresh(f"quotation {number}", said))
    tonight += [line(row, f"more:{at}") for at, row in enumerate(more)]
    draw.shuffle(tonight)
    for file, lines in {"yesterday": yesterday, "tonight": tonight}.items():
        Path(name, f"{file}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    batch = batch_at(tonight, 0)
    np.save(Path(name, "bands.npy"), batch.bands)


def batch_at(lines: Sequence[Mapping[str, Any]], first: int) -> Batch:
    """Compute the keys of lines; the first one has a number in the ledger, the others follow."""
    rows = [each["row"] for each in lines]
    contents = content_keys(rows)
    occurrences = occurrence_keys(contents, [each["place"] for each in lines])
    numbers = np.arange(first, first + len(rows))
    return batch_of(numbers, rows, contents, occurrences, THRESHOLD)


def line(row: Row, place: str) -> dict[str, Any]:
    return {"place": place, "row": row}


def edited(row: Row, draw: random.Random) -> Row:
    question, answer = (message["content"] for message in row["messages"])
    words = answer.split()
    words[draw.randrange(len(words))] = "edited"
    return conversation(question, " ".join(words))


def sentences() -> tuple[list[str], list[str]]:
    """Sentences of 13 to 40 words for rows, and others for held-out rows that share no 8 words.

    Seven words and the beginning of a next sentence are hardly 13 that both have.
    """
    texts = [text for _, text in topics()] + [each.text for each in docstrings()]
    split = (re.split(r"(?<=[.!?:])\s+|\n\n", text) for text in texts)
    found = sorted({" ".join(each.split()) for text in split for each in text})
    found = [each for each in found if GRAM <= len(re.findall(r"\w+", each)) <= 40]
    random.Random(2).shuffle(found)
    held, trained = found[: len(found) // 3], found[len(found) // 3 :]
    runs = {run for each in trained for run in ngrams(each)}
    alone: list[str] = []
    for each in held:
        own = ngrams(each)
        if not own & runs:
            alone.append(each)
            runs |= own
    return trained, alone


def write_ledger(name: str, rows: int) -> None:
    """Write a ledger: random keys, and on top of them yesterday's rows."""
    folder = Path(name, str(rows))
    tonight = np.load(Path(name, "bands.npy")).ravel()
    draw, index = np.random.default_rng(rows), Index(algorithm(THRESHOLD))
    runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    signed, first = [], 0
    for number, size in enumerate(halves(rows - YESTERDAY)):
        numbers = np.arange(first, first + size, dtype=np.uint32)
        for kind in KINDS:
            path = f"index/{kind}-{number}"
            columns = random_run(kind, numbers, tonight, draw)
            count = len(columns[KEYS])
            write_run(folder / "old" / path, columns, np.full(PARTS, count))
            runs[kind].append(Run("old", path, count, packed(np.ones(PARTS, bool))))
        first += size
    for start in range(0, first, NIGHT):
        numbers = np.arange(start, min(start + NIGHT, first), dtype=np.uint32)
        path = f"index/signatures-{start}"
        signatures = draw.integers(0, 256, (len(numbers), 128), np.uint8)
        write_signatures(folder / "old" / path, numbers, signatures)
        signed.append(Signed("old", path, len(numbers), int(numbers[-1])))
    index = Index(
        index.algorithm, len(signed), {k: tuple(v) for k, v in runs.items()}, tuple(signed)
    )
    with Path(name, "yesterday.jsonl").open() as file:
        lines = [json.loads(each) for each in file]
    texts = [each["row"] for each in lines]
    batch = batch_at(lines, first)
    held, nothing = np.arange(len(lines)) < HELDOUT, np.empty(0, np.uint64)
    said = look_up(index, folder.joinpath, batch, held, nothing)
    assert said.keep.all()
    out = folder / "yesterday"
    out.mkdir()
    measured = measured_grams(texts[:HELDOUT])
    write_index(extend(index, folder.joinpath, batch, said, said.keep, measured, out), out)
    for path in folder.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet cannot leave the page cache


def halves(rows: int) -> Iterator[int]:
    """Sizes of runs that are all due to be merged, the oldest first."""
    while rows > 1.5 * NIGHT:
        yield rows - rows // 2
        rows //= 2
    yield rows


def random_run(kind: str, numbers: Any, tonight: Any, draw: np.random.Generator) -> dict[str, Any]:
    """Entries of so many rows; one in a hundred of them is held out and has 100 runs of words."""
    each = bands(THRESHOLD)[0] if kind == BANDS else 1
    count = each * len(numbers)
    keys = draw.integers(0, 1 << 64, count, np.uint64)
    if kind == BANDS:
        strangers = STRANGERS * NIGHT * len(numbers) // 1_000_000
        keys[draw.integers(0, count, strangers)] = draw.choice(tonight, strangers)
    if kind == CONTENTS:
        others = draw.integers(0, 1 << 64, count, np.uint64)
        return dict(merged([], {KEYS: keys, OTHERS: others, ROWS: numbers}))
    if kind == BANDS:
        return dict(merged([], {KEYS: keys, ROWS: np.repeat(numbers, each)}))
    return {KEYS: np.sort(keys)}
