"""Nights of a data ledger: every row has one fate, and is trained on once."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from requant.data.rows import conversation
from requant.data.samples import read_rows
from requant.errors import ConfigError, ContractError
from requant.ledger.nights import decide_set_aside
from requant.ledger.reading import show, status
from requant.store import Store, materialise
from requant.store.lines import Verdict, read_line
from tests.support.ledger_nights import chat, ledger_config, ledger_night, write_chats
from tests.support.shout import Telling


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chats"


def fates(config) -> Counter[str]:  # type: ignore[no-untyped-def]
    found = status(Store(config.state), config.name)
    total: Counter[str] = Counter()
    for cell in found.fates.values():
        total.update(cell)
    assert sum(total.values()) == found.rows
    return total


def taken(config, records) -> list[dict]:  # type: ignore[no-untyped-def,type-arg]
    data = materialise(Store(config.state), records["prepare_data"].digest)
    return [*read_rows(data / "train.jsonl"), *read_rows(data / "heldout.jsonl")]


def written(rows) -> Counter[str]:  # type: ignore[no-untyped-def]
    """Count rows by what they say, however their fields are ordered."""
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


def test_a_night_takes_what_is_new_and_each_row_once(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    write_chats(folder / "monday.jsonl", map(chat, range(40)))
    first = taken(config, ledger_night(config))
    assert len(first) == 40
    assert fates(config).keys() == {"trained", "held_out"}
    # The same files again, another one, and one of the first renamed.
    write_chats(folder / "tuesday.jsonl", map(chat, range(40, 70)))
    second = taken(config, ledger_night(config))
    assert len(second) == 30
    (folder / "monday.jsonl").rename(folder / "lundi.jsonl")
    records = ledger_night(config)
    assert "prepare_data" not in records
    assert records["extend_ledger"].metrics["exact_duplicate"] == 40
    assert set(written(first + second).values()) == {1}
    found = fates(config)
    assert found["trained"] + found["held_out"] == 70
    assert found["exact_duplicate"] == 40
    # Nothing is new now, and nothing is written down for it.
    head = read_line(Store(config.state), config.name).ledger
    ledger_night(config)
    assert read_line(Store(config.state), config.name).ledger == head


def test_no_fate_hides_a_row(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    rows = [chat(number) for number in range(60)]
    twin = dict(conversation("WHAT DOES lesson  3 say?", rows[3]["messages"][1]["content"]))
    words = rows[5]["messages"][1]["content"].split()
    near = dict(conversation("What does lesson 5 say?", " ".join([*words[:-1], "else"])))
    write_chats(folder / "a.jsonl", [*rows, twin, near, "not json"])
    records = ledger_night(config)
    found = fates(config)
    assert found["exact_duplicate"] == 1
    assert found["near_duplicate"] == 1
    assert found["quarantined"] == 1
    assert found["trained"] + found["held_out"] == 60
    assert records["collect_rows"].metrics == {
        "read_rows": 63,
        "known_rows": 0,
        "new_rows": 63,
        "bad_rows": 1,
    }
    store = Store(config.state)
    (bad,) = show(store, config.name, "quarantined", 9)
    assert bad.row.place == "a.jsonl, line 63"
    assert "is not JSON" in bad.reason
    (copied,) = show(store, config.name, "near_duplicate", 9)
    assert copied.twin is not None
    assert copied.twin.place == "a.jsonl, line 6"
    assert copied.reason.endswith("of its word runs are those of")


def test_what_is_measured_on_is_not_trained_on(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    exam = tmp_path / "exam.txt"
    stolen = chat(7)["messages"][1]["content"]
    exam.write_text(f"Question one.\n{stolen}\n")
    extend = {"evaluation_text": [str(exam)]}
    config = ledger_config(tmp_path / "state", tiny_base, folder, extend_ledger=extend)
    write_chats(folder / "a.jsonl", map(chat, range(40)))
    ledger_night(config)
    store = Store(config.state)
    held = [shown.row.row for shown in show(store, config.name, "held_out", 99)]
    assert {shown.number for shown in show(store, config.name, "contaminated", 9)} <= {7}
    # A later row that quotes what is held out, in other words around it.
    quoted = held[0]["messages"][1]["content"]  # type: ignore[index]
    quoting = conversation("Tell me a story.", f"Well, once somebody said {quoted} and then left.")
    write_chats(folder / "b.jsonl", [*map(chat, range(40, 60)), quoting])
    ledger_night(config)
    contaminated = [*show(store, config.name, "contaminated", 9)]
    assert "b.jsonl, line 21" in {shown.row.place for shown in contaminated}
    assert all("runs of 13 words with held-out" in shown.reason for shown in contaminated)


def test_rows_that_are_too_few_or_too_many_wait(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(
        tmp_path / "state", tiny_base, folder, extend_ledger={"max_rows": 10, "min_new_rows": 8}
    )
    write_chats(folder / "a.jsonl", map(chat, range(5)))
    assert "prepare_data" not in ledger_night(config)
    assert fates(config) == {"waiting": 5}
    write_chats(folder / "b.jsonl", map(chat, range(5, 40)))
    seen: list[dict] = []  # type: ignore[type-arg]
    nights = 0
    while "prepare_data" in (records := ledger_night(config)):
        rows = taken(config, records)
        assert sum(row in rows for row in map(chat, range(5))) == (5 if not seen else 0)
        seen += rows
        nights += 1
    assert nights == 3
    found = fates(config)
    # The last few wait for more.
    assert found["waiting"] == 40 - len(seen) < 8
    assert len({json.dumps(row) for row in seen}) == len(seen)


def test_rows_of_a_refused_night_are_set_aside_until_a_person_decides(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    store = Store(config.state)
    write_chats(folder / "a.jsonl", map(chat, range(30)))
    ledger_night(config, "refused")
    aside = fates(config)["set_aside"]
    assert aside > 20
    write_chats(folder / "b.jsonl", map(chat, range(30, 50)))
    second = taken(config, ledger_night(config))
    assert len(second) == 20
    assert fates(config)["set_aside"] == aside
    assert decide_set_aside(store, config.name, 1, "released", "the answers were right") == aside
    third = taken(config, ledger_night(config))
    assert len(third) == aside
    assert fates(config)["set_aside"] == 0
    assert {json.dumps(row) for row in third}.isdisjoint(json.dumps(row) for row in second)


def test_a_killed_night_goes_on_with_the_rows_it_took(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    write_chats(folder / "a.jsonl", map(chat, range(20)))
    killed = ledger_night(config, verdict=None)
    assert fates(config)["training"] > 10
    write_chats(folder / "b.jsonl", map(chat, range(20, 40)))
    again = ledger_night(config)
    assert again["prepare_data"].digest == killed["prepare_data"].digest
    assert again["collect_rows"].started == killed["collect_rows"].started
    assert len(taken(config, ledger_night(config))) == 20


def test_a_bad_row_ends_no_night_and_a_broken_source_does(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    write_chats(folder / "a.jsonl", [*map(chat, range(20)), *["{"] * 5])
    with pytest.raises(ContractError, match=r"chats: 5 of 25 new rows are bad, more than"):
        ledger_night(config)
    # Mended, it is read anew: nothing of the broken one was taken.
    write_chats(folder / "a.jsonl", [*map(chat, range(20)), "{"])
    assert len(taken(config, ledger_night(config))) == 20
    assert fates(config)["quarantined"] == 1


def test_a_source_without_files_has_no_rows_and_says_so(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    with pytest.raises(ConfigError, match=r"sources\.chats\.paths: .*chats': is not there"):
        ledger_night(config)
    folder.mkdir()
    told = Telling()
    assert "prepare_data" not in ledger_night(config, reporter=told)
    assert f"chats: no file there ends in .jsonl, .jsonl.gz, .jsonl.zst, .parquet: '{folder}'" in (
        told.lines[0].removesuffix(" has no rows")
    )
    assert told.lines[1] == "chats: 0 rows, 0 known at their place, 0 new"
    assert read_line(Store(config.state), config.name).ledger is None
    write_chats(folder / "a.jsonl", map(chat, range(20)))
    assert len(taken(config, ledger_night(config))) == 20


def test_a_night_reads_no_more_than_it_may_and_says_what_it_did_not_look_at(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    sources = [
        {"kind": "files", "name": name, "paths": [str(folder / f"{name}.jsonl")]}
        for name in ("first", "second", "third")
    ]
    collect = {"enabled": True, "sources": sources, "max_new_rows": 30}
    config = ledger_config(tmp_path / "state", tiny_base, folder, collect_rows=collect)
    # Bad rows beyond what is read say nothing of a source.
    write_chats(folder / "first.jsonl", map(chat, range(20)))
    write_chats(folder / "second.jsonl", [*map(chat, range(20, 40)), *["{"] * 6])
    write_chats(folder / "third.jsonl", map(chat, range(40, 50)))
    told = Telling()
    first = taken(config, ledger_night(config, reporter=told))
    assert told.lines == [
        "first: 20 rows, 0 known at their place, 20 new: 20 messages",
        "second: 10 rows, 0 known at their place, 10 new: 10 messages",
        "collect_rows.max_new_rows=30 new rows are read; what the sources have beyond them is for "
        "later nights; not looked at: third",
    ]
    with pytest.raises(ContractError, match=r"second: 6 of 16 new rows are bad, more than"):
        ledger_night(config)
    write_chats(folder / "second.jsonl", map(chat, range(20, 40)))
    told = Telling()
    second = taken(config, ledger_night(config, reporter=told))
    assert told.lines[1] == "second: 20 rows, 10 known at their place, 10 new: 10 messages"
    assert written(first + second) == written(map(chat, range(50)))


def test_a_row_the_template_cannot_render_is_quarantined(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    spelling = conversation("What ends a turn?", "It is <|im_end|> of course, the end of it.")
    write_chats(folder / "a.jsonl", [*map(chat, range(20)), spelling])
    packed = folder / "b.jsonl.gz"
    with gzip.open(packed, "wt") as file:
        file.writelines(json.dumps(chat(number)) + "\n" for number in range(20, 30))
    ledger_night(config)
    (bad,) = show(Store(config.state), config.name, "quarantined", 9)
    assert "control token" in bad.reason
    found = fates(config)
    assert found["trained"] + found["held_out"] == 30


def test_a_night_replays_rows_that_earlier_nights_were_trained_on(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(
        tmp_path / "state",
        tiny_base,
        folder,
        extend_ledger={"consolidate_every": 3},
        replay={"rows": 0.25, "general": 0.25},
    )

    def trained(first: int, verdict: Verdict) -> list[str]:
        write_chats(folder / f"{first}.jsonl", map(chat, range(first, first + 20)))
        data = materialise(
            Store(config.state), ledger_night(config, verdict)["prepare_data"].digest
        )
        rows = read_rows(data / "train.jsonl")
        return [row["text"] if "text" in row else row["messages"][0]["content"] for row in rows]

    def of(night: list[str], first: int) -> int:
        return sum(f"What does lesson {n} say?" in night for n in range(first, first + 20))

    nights = [trained(0, "accepted"), trained(20, "refused"), trained(40, "accepted")]
    assert of(nights[1], 0) > 3
    # Rows of the refused night are replayed by none, nor is what is held out.
    assert of(nights[2], 20) == 0
    assert of(nights[2], 0) <= of(nights[0], 0)
    # The third generation trains the original anew, on all that was accepted.
    last = trained(60, "accepted")
    assert of(last, 0) == of(nights[0], 0)
    assert of(last, 40) == of(nights[2], 40)
    assert len([text for text in last if "lesson" not in text]) > 3


def test_near_duplicates_can_be_kept(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    extend = {"near_duplicates": None}
    config = ledger_config(tmp_path / "state", tiny_base, folder, extend_ledger=extend)
    rows = [chat(number) for number in range(20)]
    shouted = conversation("What does lesson 3 say!?", rows[3]["messages"][1]["content"])
    write_chats(folder / "a.jsonl", [*rows, shouted, rows[4]])
    ledger_night(config)
    found = fates(config)
    assert found["exact_duplicate"] == 1
    # Where one of the two is held out, the other is contaminated.
    assert found["trained"] + found["held_out"] + found["contaminated"] == 21


def test_rows_that_moved_in_their_file_are_not_new(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    """A log that loses its first lines, or a table in another order."""
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    write_chats(folder / "log.jsonl", [*map(chat, range(20)), chat(3)])
    ledger_night(config)
    assert fates(config)["exact_duplicate"] == 1
    write_chats(folder / "log.jsonl", [*map(chat, reversed(range(5, 32))), chat(3)])
    records = ledger_night(config)
    assert records["collect_rows"].metrics["new_rows"] == 12
    assert fates(config)["exact_duplicate"] == 1


def test_a_row_is_no_duplicate_of_one_that_could_not_be_used(
    tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    config = ledger_config(tmp_path / "state", tiny_base, folder)
    spelling = conversation("What ends a turn?", "It is <|im_end|> of course, the end of it.")
    write_chats(folder / "a.jsonl", [*map(chat, range(20)), spelling])
    ledger_night(config)
    assert fates(config)["quarantined"] == 1
    config = ledger_config(
        tmp_path / "state", tiny_base, folder, collect_rows={"control_tokens": "text"}
    )
    write_chats(folder / "b.jsonl", [*map(chat, range(20, 40)), spelling])
    assert len(taken(config, ledger_night(config))) == 21


@pytest.mark.parametrize("name", ["exam.txt", "exam.jsonl"])
def test_an_evaluation_is_read_whatever_its_lines(
    name: str, tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    exam = tmp_path / name
    words = chat(7)["messages"][1]["content"].split()
    wrapped = "\n".join(" ".join(words[start : start + 6]) for start in range(0, len(words), 6))
    exam.write_text(
        json.dumps({"question": "Which?", "answer": wrapped}) if name.endswith("l") else wrapped
    )
    extend = {"evaluation_text": [str(exam)], "heldout_fraction": 0.01}
    config = ledger_config(tmp_path / "state", tiny_base, folder, extend_ledger=extend)
    write_chats(folder / "a.jsonl", map(chat, range(40)))
    ledger_night(config)
    found = [*show(Store(config.state), config.name, "contaminated", 9)]
    assert [shown.number for shown in found] == [7]
