"""A collection takes nothing that a later night of a ledger needs, and what is left behind."""

import os
import shutil
from pathlib import Path

import pytest

from requant.config import Config
from requant.ledger.fates import FATES
from requant.ledger.nights import decide_set_aside, ledger_of
from requant.ledger.reading import show, status
from requant.store import StageRecord, Store, all_records, materialise
from requant.store.gc import collect, find_garbage
from requant.store.health import examine
from requant.store.lines import read_line
from tests.support.ledger_nights import chat, ledger_config, ledger_night, write_chats

A_NIGHT = 20


def digests(records: dict[str, StageRecord]) -> dict[str, str]:
    return {stage: record.digest for stage, record in records.items()}


def five_nights(config: Config, folder: Path) -> None:
    """Take nights that leave rows waiting, the third of them refused, its rows released since."""
    for night in range(5):
        first = night * A_NIGHT
        again = map(chat, range(max(first - 3, 0), first))
        rows = [*map(chat, range(first, first + A_NIGHT)), *again, "broken"]
        write_chats(folder / f"{night}.jsonl", rows)
        ledger_night(config, "refused" if night == 2 else "accepted")
    decide_set_aside(Store(config.state), config.name, 3, "released", "")


@pytest.fixture
def line(tiny_base: Path, tmp_path: Path) -> tuple[Config, Path]:
    """A line of five nights, and where its rows lie."""
    folder = tmp_path / "chats"
    config = ledger_config(
        tmp_path / "state", tiny_base, folder, extend_ledger={"max_rows": 12, "reservoir_rows": 8}
    )
    five_nights(config, folder)
    return config, folder


def test_the_sixth_night_after_a_collection_is_as_without_one(
    line: tuple[Config, Path], tmp_path: Path
) -> None:
    config, folder = line
    store, copy = Store(config.state), tmp_path / "copy"
    shutil.copytree(config.state, copy)
    garbage = collect(store, keep=1)
    old = [record for record in all_records(Store(copy)) if record.stage == "prepare_data"]
    assert len(old) == 5
    assert {path.name for path in garbage.folders} == {record.digest for record in old[:-1]}
    assert examine(store, deep=True).problems == ()
    for fate in FATES:
        there, here = (list(show(each, config.name, fate, 999)) for each in (Store(copy), store))
        assert there == here
    write_chats(folder / "5.jsonl", map(chat, range(5 * A_NIGHT - 3, 6 * A_NIGHT)))
    other = config.model_copy(update={"state": copy})
    assert digests(ledger_night(config)) == digests(ledger_night(other))
    assert status(store, config.name).fates == status(Store(copy), config.name).fates


def test_what_no_ledger_names_is_garbage(line: tuple[Config, Path]) -> None:
    config, folder = line
    store = Store(config.state)
    collect(store, keep=1)
    killed = store.draft_path("a" * 64)
    killed.mkdir(parents=True)
    (killed / "rows.parquet").write_bytes(b"half a")
    torn = store.lines / f".{config.name}.json.{'b' * 32}"
    torn.write_text("half a head")
    os.utime(torn, (1e9, 1e9))
    # A night that read the sources, and took other rows when it was tried again.
    write_chats(folder / "5.jsonl", map(chat, range(5 * A_NIGHT, 6 * A_NIGHT)))
    first = ledger_night(config, verdict=None)
    write_chats(folder / "6.jsonl", map(chat, range(6 * A_NIGHT, 6 * A_NIGHT + 9)))
    second = ledger_night(config.model_copy(update={"seed": 1}))
    assert second["collect_rows"].digest != first["collect_rows"].digest
    found = find_garbage(store, keep=1)
    assert killed in found.folders
    assert found.torn == (torn,)
    for stage in ("collect_rows", "extend_ledger", "prepare_data"):
        assert store.object_path(first[stage].digest) in found.folders
        assert store.object_path(second[stage].digest) not in found.folders
    collect(store, keep=1)
    assert not torn.exists()
    assert read_line(store, config.name).ledger == second["extend_ledger"].digest


def test_a_record_that_somebody_removed_takes_no_ledger_with_it(
    line: tuple[Config, Path],
) -> None:
    config, folder = line
    store = Store(config.state)
    ledger = ledger_of(store, read_line(store, config.name).ledger)
    needed = {*ledger.ledgers, *(night.artifact for night in ledger.nights)}
    for record in all_records(store):
        if record.digest in needed and record.stage in ("collect_rows", "extend_ledger"):
            store.record_path(record.key).unlink()
    collect(store, keep=1)
    assert all(store.object_path(digest).is_dir() for digest in needed)
    write_chats(folder / "5.jsonl", map(chat, range(5 * A_NIGHT, 6 * A_NIGHT)))
    assert "prepare_data" in ledger_night(config)
    shutil.rmtree(store.object_path(ledger.nights[0].artifact))
    problems = examine(store, deep=False).problems
    assert [text for text in problems if ledger.nights[0].artifact in text]


def test_a_ledger_that_is_gone_holds_everything_back(line: tuple[Config, Path]) -> None:
    config, _ = line
    store = Store(config.state)
    head = read_line(store, config.name).ledger
    assert head is not None
    shutil.rmtree(materialise(store, head))
    found = find_garbage(store, keep=1)
    assert not found.folders
    assert [text for text in found.held_back if head[:12] in text]
