"""What must hold of a line of the ledger whose nights were killed: of rows, training and bytes."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from requant.canonical import canonical_json
from requant.config import Config
from requant.data.samples import read_rows as read_samples
from requant.ledger.fates import FATES
from requant.ledger.nights import ledger_of
from requant.ledger.reading import show, status
from requant.ledger.rows import ROWS, CollectedRow, read_rows
from requant.store import Store, all_records, materialise
from requant.store.health import examine
from requant.store.lines import read_line
from tests.chaos.ledger_line import Played, configured, decide, verdict_of
from tests.chaos.stages import leftovers
from tests.chaos.strikes import (
    finished,
)
from tests.support.ledger_nights import ledger_night


def check_fates(played: Played) -> None:
    """At any moment the fates add up to the rows that are known."""
    found = status(played.store, played.config.name)
    assert sum(sum(cell.values()) for cell in found.fates.values()) == found.rows


def check(played: Played) -> None:
    """Hold all that came of the line against what was written, and against a line in peace.

    Raises:
        AssertionError: Naming what differs.
    """
    store, ledger = played.store, played.ledger()
    assert played.line().begun is None
    written = Counter(
        f"{path.name}, line {number}"
        for path in sorted(played.rows.glob("*.jsonl"))
        for number, _ in enumerate(path.read_text().splitlines(), 1)
    )
    read = [row for each in ledger.nights for row in _rows_of(store, each.artifact)]
    assert Counter(row.place for row in read) == written, "a row was lost, or read twice"
    for number, outcome in played.line().nights.items():
        artifact = ledger.nights[number - 1].artifact
        assert played.taken.get(outcome.began, artifact) == artifact, "a retry took other rows"
    check_fates(played)
    _check_texts(played, read)
    _check_training(played)
    problems = examine(store, deep=True).problems
    assert problems == (), f"not whole: {problems}"
    left = leftovers(store)
    assert left == [], f"left behind: {left}"
    _check_peace(played)


def _rows_of(store: Store, artifact: str) -> list[CollectedRow]:
    return [row for group in read_rows(materialise(store, artifact) / ROWS) for row in group]


def _check_texts(played: Played, read: Sequence[CollectedRow]) -> None:
    """Of rows that say the same one has a fate of its own, and the others repeat it."""
    fates: dict[tuple[int, int], list[str]] = {}
    for fate in FATES:
        for shown in show(played.store, played.config.name, fate, 10**6):
            if shown.row.row is not None:
                fates.setdefault(shown.row.content, []).append(fate)
    assert Counter(row.content for row in read if row.row) == {
        content: len(found) for content, found in fates.items()
    }
    for content, found in fates.items():
        assert len(found) - found.count("exact_duplicate") == 1, (content, found)


def _check_training(played: Played) -> None:
    """Each row that is said to be trained stands in the training part of one accepted night."""
    store, line, ledger = played.store, played.line(), played.ledger()
    datasets = {
        record.key_fields["inputs"]["ledger"]: record.digest
        for record in all_records(store)
        if record.stage == "prepare_data"
    }
    digests = (*ledger.ledgers, line.ledger)
    trained: Counter[bytes] = Counter()
    for number, outcome in line.nights.items():
        if outcome.verdict == "accepted":
            folder = materialise(store, datasets[str(digests[number - 1])])
            trained.update(map(canonical_json, read_samples(folder / "train.jsonl")))
    shown = show(store, played.config.name, "trained", 10**6)
    assert trained == Counter(canonical_json(each.row.row) for each in shown)
    assert set(trained.values()) == {1}


def _nights_in_peace(config: Config, there: Path, rows: Path, files: list[list[str]]) -> None:
    """Take a night after each arrival of some files."""
    for number, names in enumerate(files, 1):
        for name in names:
            shutil.copyfile(there / name, rows / name)
        decide(config)
        ledger_night(config, verdict_of(number))


def _check_peace(played: Played) -> None:
    """Give a line in peace in each night what the killed one took, and compare all bytes."""
    folder = played.folder / "peace"
    shutil.rmtree(folder, ignore_errors=True)
    rows = folder / "chats"
    rows.mkdir(parents=True)
    config = configured(folder / "state", played.config.prepare_base.source.path, rows)
    store, ledger = played.store, played.ledger()
    files = [
        sorted({row.place.partition(",")[0] for row in _rows_of(store, each.artifact)})
        for each in ledger.nights
    ]
    finished(played.log, _nights_in_peace, config, played.rows, rows, files)
    peace = read_line(Store(config.state), config.name)
    theirs = ledger_of(Store(config.state), peace.ledger)
    assert [each.artifact for each in theirs.nights] == [each.artifact for each in ledger.nights]
    assert (*theirs.ledgers, peace.ledger) == (*ledger.ledgers, played.line().ledger)
    made = {
        Store(state): {r.digest for r in all_records(Store(state)) if r.stage == "prepare_data"}
        for state in (config.state, played.config.state)
    }
    assert len(set(map(frozenset, made.values()))) == 1
