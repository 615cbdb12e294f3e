"""What people do to a line and its sources between nights, and what nights make of it."""

import json
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from requant.config import Config
from requant.data.rows import conversation
from requant.data.samples import read_rows
from requant.errors import ContractError
from requant.ledger.reading import show, status
from requant.preflight.collecting import collecting_problems
from requant.store import Store, materialise
from tests.support.ledger_nights import chat, ledger_config, ledger_night, write_chats
from tests.support.shout import Telling

Line = Callable[..., Config]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chats"


@pytest.fixture
def line(tiny_base: Path, folder: Path, tmp_path: Path) -> Line:
    """Configure a line on the state folder of the test."""
    return lambda **changes: ledger_config(tmp_path / "state", tiny_base, folder, **changes)


def fates(config: Config) -> dict[str, int]:
    total: Counter[str] = Counter()
    for cell in status(Store(config.state), config.name).fates.values():
        total.update(cell)
    return dict(total)


def problems(config: Config) -> list[str]:
    return [str(problem) for problem in collecting_problems(config)]


def test_another_threshold_is_refused_before_the_sources_are_read(line: Line, folder: Path) -> None:
    write_chats(folder / "a.jsonl", map(chat, range(20)))
    plain = line()
    assert problems(plain) == []
    ledger_night(plain)
    assert problems(plain) == []
    write_chats(folder / "b.jsonl", map(chat, range(20, 40)))
    for given, now in ((0.9, "0.9"), (None, "0.99")):
        other = line(extend_ledger={"near_duplicates": given})
        (problem,) = problems(other)
        assert "its rows are known by keys that are made otherwise tonight" in problem
        assert f"extend_ledger.near_duplicates (null is 0.99): 0.8, tonight {now}" in problem
        assert "give the line another `name`" in problem
        with pytest.raises(ContractError, match="made otherwise tonight"):
            ledger_night(other)
    # Taken back, nothing is lost; under another name the line begins anew.
    assert ledger_night(plain)["extend_ledger"].metrics["new_rows"] == 20
    renamed = line(extend_ledger={"near_duplicates": None}).model_copy(update={"name": "anew"})
    assert problems(renamed) == []
    assert ledger_night(renamed)["extend_ledger"].metrics["new_rows"] == 40
    assert fates(plain)["trained"] == fates(renamed)["trained"]


def test_all_that_is_missing_is_known_before_the_night(line: Line, folder: Path) -> None:
    notes = folder.parent / "exam.txt"
    config = line(extend_ledger={"evaluation_text": [str(notes)]})
    absent, exam = problems(config)
    assert "sources.chats.paths" in absent
    assert exam == f"extend_ledger.evaluation_text: {notes} is not a file; give an existing one"
    folder.mkdir()
    notes.write_bytes(b"\xff")
    (exam,) = problems(config)
    assert "is not UTF-8 text" in exam
    notes.write_text("What is asked.")
    assert problems(config) == []
    path = Store(config.state).line_path(config.name)
    path.parent.mkdir(parents=True)
    path.write_text("half a head")
    (head,) = problems(config)
    assert f"{path}: " in head
    assert "the line then begins anew" in head


def test_a_row_that_teaches_nothing_is_quarantined(line: Line, folder: Path) -> None:
    turns = chat(20)["messages"]
    unheard = [*turns[:1], {**turns[1], "weight": 0}]
    endless = [message for _ in range(1001) for message in turns]
    rows = [{"messages": each} for each in (turns[1:], unheard, endless)]
    write_chats(folder / "a.jsonl", [*map(chat, range(20)), *rows, {"text": "a"}])
    config = line()
    ledger_night(config)
    bad = [shown.reason for shown in show(Store(config.state), config.name, "quarantined", 9)]
    nothing = "teaches nothing: no turn of the assistant with a weight other than 0 stands after"
    assert [reason[: len(nothing)] for reason in bad[:2]] == [nothing, nothing]
    assert bad[2].startswith("has 2002 messages; more than 2000 take minutes to render")
    found = fates(config)
    assert found.pop("quarantined") == len(bad)
    assert sum(found.values()) == 24 - len(bad)


def test_rows_that_share_a_long_instruction_are_said_to_look_alike(
    line: Line, folder: Path
) -> None:
    ask = " ".join(f"word{number}" for number in range(40))
    write_chats(folder / "a.jsonl", [conversation(ask, f"label {n}") for n in range(20)])
    told = Telling()
    ledger_night(line(), reporter=told)
    (said,) = (text for text in told.lines if "nearly repeat others" in text)
    assert re.match(r"1\d of 20 new rows .* put it into a system message, which is not", said)


def test_a_single_row_waits_for_another(line: Line, folder: Path) -> None:
    config = line(extend_ledger={"min_new_rows": 2, "max_rows": 1})
    for night in range(4):
        write_chats(folder / f"{night}.jsonl", [chat(night)])
        told = Telling()
        took = ledger_night(config, reporter=told)["extend_ledger"].metrics["taken"]
        assert took == night % 2, night
        nothing = [text for text in told.lines if text.startswith("nothing to do")]
        needs = "1 wait for more: a night needs 2 (extend_ledger.min_new_rows)"
        said = f"nothing to do: 1 rows that no night has read, {needs}"
        assert nothing == ([] if took else [said])
    told = Telling()
    ledger_night(config, reporter=told)
    assert "nothing to do: 0 rows that no night has read, 0 wait for more" in told.lines[-1]
    assert fates(config) == {"trained": 2, "held_out": 2}


def test_rows_of_one_group_wait_for_another_and_it_is_said(line: Line, folder: Path) -> None:
    config = line(collect_rows={"columns": {"group": "customer"}})

    def rows(first: int, customer: str) -> list[dict[str, Any]]:
        return [{**chat(number), "customer": customer} for number in range(first, first + 20)]

    write_chats(folder / "a.jsonl", rows(0, "one"))
    for new in (20, 0):
        told = Telling()
        ledger_night(config, reporter=told)
        assert fates(config) == {"waiting": 20}
        assert told.lines[-1] == (
            f"nothing to do: {new} rows that no night has read, 20 wait for more: all of them are "
            "to be held out, by their text or group, and a night needs others"
        )
    write_chats(folder / "b.jsonl", rows(20, "two"))
    data = materialise(Store(config.state), ledger_night(config)["prepare_data"].digest)
    groups = [
        {row["group"] for row in read_rows(data / f"{part}.jsonl")} for part in ("train", "heldout")
    ]
    assert sorted(map(len, groups)) == [1, 1]
    assert groups[0] != groups[1]


def test_a_query_knows_its_rows_again_in_any_order(
    line: Line, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.db"

    def insert(numbers: range) -> None:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS chats (n INTEGER, messages TEXT)")
            rows = [(number, json.dumps(chat(number)["messages"])) for number in numbers]
            database.executemany("INSERT INTO chats VALUES (?, ?)", rows)

    def night(order: str, most: int = 25) -> dict[str, float]:
        query = f"SELECT messages FROM chats ORDER BY {order}"
        source = {"kind": "sql", "name": "chats", "url": f"sqlite:///{file}", "query": query}
        config = line(collect_rows={"sources": [source], "max_new_rows": most})
        return ledger_night(config)["collect_rows"].metrics

    insert(range(20))
    assert night("n")["new_rows"] == 20
    # The newest first, and one that stands there twice: all old rows move.
    insert(range(19, 40))
    found = night("n DESC")
    assert (found["read_rows"], found["known_rows"], found["new_rows"]) == (41, 20, 21)
    assert night("random()")["new_rows"] == 0
    assert fates(line()) == {"trained": 31, "held_out": 9, "exact_duplicate": 1}


def test_a_file_that_grows_while_it_is_read_loses_no_row(line: Line, folder: Path) -> None:
    config = line()
    file, done = folder / "a.jsonl", threading.Event()
    write_chats(file, map(chat, range(300)))

    def grow() -> None:
        with file.open("ab", buffering=0) as out:
            for number in range(300, 3000):
                row = json.dumps(chat(number)).encode() + b"\n"
                for piece in (row[:40], row[40:]):
                    out.write(piece)
                if done.wait(0.0005):
                    return

    writer = threading.Thread(target=grow)
    writer.start()
    for _ in range(3):
        ledger_night(config)
    done.set()
    writer.join()
    # Nobody writes any more, and the line that was cut is whole.
    ledger_night(config)
    ledger_night(config)
    lines = file.read_text().splitlines()
    assert len(lines) > 300
    found = fates(config)
    # Of each night one line may have been half there.
    assert found.pop("quarantined", 0) <= 3
    found.pop("waiting", None)
    assert sum(found.values()) == len(lines)
    assert found.keys() == {"trained", "held_out"}


def test_a_source_that_is_renamed_or_named_twice_gives_no_row_twice(
    line: Line, folder: Path
) -> None:
    def named(*names: str) -> Config:
        sources = [{"kind": "files", "name": name, "paths": [str(folder)]} for name in names]
        return line(collect_rows={"sources": sources})

    write_chats(folder / "a.jsonl", map(chat, range(20)))
    ledger_night(named("chats"))
    assert "prepare_data" not in ledger_night(named("talks"))
    write_chats(folder / "b.jsonl", map(chat, range(20, 40)))
    records = ledger_night(named("chats", "talks"))
    assert records["collect_rows"].metrics["new_rows"] == 40
    config = named("chats")
    found = fates(config)
    assert (found["trained"] + found["held_out"], found["exact_duplicate"]) == (40, 40)
    twins = [shown.twin for shown in show(Store(config.state), config.name, "exact_duplicate", 99)]
    assert {twin.source for twin in twins if twin} == {"chats"}


def test_a_night_that_is_told_to_read_anew_after_a_kill_takes_what_is_there_now(
    line: Line, folder: Path
) -> None:
    config = line()
    write_chats(folder / "a.jsonl", map(chat, range(20)))
    killed = ledger_night(config, verdict=None)
    write_chats(folder / "b.jsonl", map(chat, range(20, 40)))
    again = ledger_night(config, force=("collect_rows",))
    assert again["collect_rows"].key == killed["collect_rows"].key
    assert again["collect_rows"].digest != killed["collect_rows"].digest
    found = fates(config)
    assert found["trained"] + found["held_out"] == 40
    assert "prepare_data" not in ledger_night(config)


def test_a_person_is_told_what_to_set(line: Line, folder: Path) -> None:
    told = Telling()
    write_chats(folder / "a.jsonl", [*map(chat, range(20)), json.dumps({"frage": "x"})])
    ledger_night(line(), reporter=told)
    (said,) = (text for text in told.lines if text.startswith("quarantined"))
    assert "set `columns` to those that hold the conversation" in said
    with pytest.raises(ValueError, match=r"min_new_rows\n.* greater than or equal to 2"):
        line(extend_ledger={"min_new_rows": 1})
