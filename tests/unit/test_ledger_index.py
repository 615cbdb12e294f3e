"""An index in files of many nights says what one of a single night and what plain sets say."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requant.data.formats import Row
from requant.data.overlap import normalised
from requant.errors import ContractError
from requant.ledger.extend import extend
from requant.ledger.index import KINDS, Index, Run, packed, read_index, write_index
from requant.ledger.runs import PARTS, merged, read_parts, write_run
from requant.ledger.verdicts import Verdicts, look_up
from tests.support.ledgers import (
    NOTHING,
    THRESHOLD,
    Ledger,
    asked,
    batch_at,
    empty,
    taken,
    text,
)

VOCABULARY = [f"word{number}" for number in range(400)]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """One of five texts of 40 words, with up to four words of it changed."""
    start = 40 * draw(st.integers(0, 4))
    words = VOCABULARY[start : start + 40]
    for at in draw(st.sets(st.integers(0, 39), max_size=4)):
        words[at] = draw(st.sampled_from(["red", "blue"]))
    return text(" ".join(words))


NIGHTS = st.lists(st.lists(rows(), max_size=5), min_size=1, max_size=5)


def same(left: Verdicts, right: Verdicts) -> bool:
    pairs = [
        (left.seen, right.seen),
        (left.known, right.known),
        (left.shared, right.shared),
        (left.nearest.row, right.nearest.row),
        (left.nearest.similarity, right.nearest.similarity),
    ]
    return all((one == other).all() for one, other in pairs)


@settings(max_examples=25, deadline=None)
@given(NIGHTS, st.lists(rows(), min_size=1, max_size=6))
def test_many_nights_say_what_one_says(nights: list[list[Row]], queries: list[Row]) -> None:
    flat = [row for night in nights for row in night]
    with TemporaryDirectory() as name:
        ledger, kept = empty(Path(name, "many")), []
        for night in nights:
            ledger, said = taken(ledger, night, heldout=[])
            kept += said.keep.tolist()
        once, said = taken(empty(Path(name, "once")), flat)
        assert kept == said.keep.tolist()
        assert same(asked(ledger, queries), asked(once, queries))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(rows(), st.sampled_from("xyz")), max_size=5), max_size=5))
def test_equal_rows_are_those_of_plain_sets(nights: list[list[tuple[Row, str]]]) -> None:
    occurrences: set[tuple[str, str]] = set()
    contents: dict[str, int] = {}
    with TemporaryDirectory() as name:
        ledger = empty(Path(name))
        for night in nights:
            seen, known = [], []
            for number, (row, place) in enumerate(night):
                content = normalised(row)
                seen.append((content, place) in occurrences)
                known.append(contents.get(content, -1))
                occurrences.add((content, place))
                contents.setdefault(content, ledger.rows + number)
            ledger, said = taken(ledger, *map(list, zip(*night, strict=True)) if night else ([],))
            assert said.seen.tolist() == seen
            assert said.known.tolist() == known


def test_equal_nights_have_equal_bytes(tmp_path: Path) -> None:
    nights = [[text(f"{VOCABULARY[at]} {number}") for at in range(30)] for number in range(5)]
    for name in "ab":
        ledger = empty(tmp_path / name)
        for night in nights:
            ledger, _ = taken(ledger, night, heldout=[1, 4])
    files = [path for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) > 50
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_the_order_of_a_night_decides_only_who_is_first(tmp_path: Path) -> None:
    base = " ".join(VOCABULARY[:60])
    night = [text(base), text(base.upper()), text(f"{base} end"), text("something else")]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        said = asked(empty(tmp_path), [night[at] for at in order])
        assert said.keep.sum() == 2
        assert (said.known >= 0).sum() + (said.nearest.row >= 0).sum() == 2
        assert said.keep[0]


def test_a_row_that_is_dropped_makes_no_other_a_duplicate(tmp_path: Path) -> None:
    words = VOCABULARY[:100]
    # Of 98 runs of three words each differs from its neighbour in 9 at most, the outer ones in 14.
    chain = [text(" ".join([*"abcdefghijklmn"[:count], *words[count:]])) for count in (0, 7, 14)]
    first, middle, last = chain
    assert asked(empty(tmp_path), [first, middle, last]).nearest.row.tolist() == [-1, 0, -1]
    assert asked(empty(tmp_path), [middle, first, last]).nearest.row.tolist() == [-1, 0, 0]
    ledger, _ = taken(empty(tmp_path), [first, middle])
    assert asked(ledger, [last]).keep[0]


def test_of_several_the_most_alike_is_named(tmp_path: Path) -> None:
    words = VOCABULARY[:100]
    head, tail = text(" ".join([*"abcdefgh", *words[8:]])), text(" ".join([*words[:-6], *"ijklmn"]))
    ledger, said = taken(empty(tmp_path), [head, tail])
    assert said.keep.all()
    for place in (0, 1):
        found = asked(ledger, [text(" ".join(words)), text("another")][:: 1 - 2 * place]).nearest
        assert found.row[place] == 1
        assert found.similarity[place] == pytest.approx(92 / 104, abs=0.07)


def in_slices(root: Path, rows: Sequence[Row], size: int) -> tuple[Index, list[bool]]:
    """One night that takes its rows in several batches into one folder."""
    out, index, kept = root / "night", empty(root).index, []
    out.mkdir()
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        places = [str(row) for row in range(start, start + len(part))]
        batch = batch_at(part, places, start)
        said = look_up(index, lambda _: out, batch, np.zeros(len(part), bool), NOTHING)
        index = extend(index, lambda _: out, batch, said, said.keep, NOTHING, out)
        kept += said.keep.tolist()
    write_index(index, out)
    return read_index(out, "night", THRESHOLD), kept


def test_a_night_may_come_in_slices_and_leaves_only_files_that_are_live(tmp_path: Path) -> None:
    night = [text(" ".join(VOCABULARY[at : at + 60])) for at in range(0, 340, 2)]
    night += [text(f"{row['text']} again") for row in night[::7]]
    index, kept = in_slices(tmp_path, night, 9)
    once, said = taken(empty(tmp_path / "once"), night)
    assert kept == said.keep.tolist()
    ledger = Ledger(tmp_path, index, len(night), 1)
    queries, places = night[:40], [f"elsewhere {row}" for row in range(40)]
    assert same(asked(ledger, queries, places), asked(once, queries, places))
    named = {run.path for runs in index.runs.values() for run in runs}
    named |= {signed.path for signed in index.signed}
    found = {
        str(path.relative_to(tmp_path / "night")) for path in (tmp_path / "night/index").iterdir()
    }
    assert found == named


def half_merged(ledger: Ledger) -> Index:
    """The same index after a night whose limit let it merge only every second part."""
    half, runs = np.arange(PARTS) % 2 == 0, {}
    for kind, old in ledger.index.runs.items():
        folders = [ledger.root / run.digest / run.path for run in old]
        parts = [entries for folder in folders for _, entries in read_parts(folder, half)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        write_run(ledger.root / "half" / kind, merged([], columns), np.ones(PARTS, np.int64))
        rest = [replace(run, live=packed(run.parts & ~half)) for run in old]
        runs[kind] = (*rest, Run("half", kind, len(columns["keys"]), packed(half)))
    return replace(ledger.index, runs=runs)


def test_an_index_that_is_merged_in_part_says_the_same(tmp_path: Path) -> None:
    rows = [text(" ".join(VOCABULARY[at : at + 60])) for at in range(0, 340, 4)]
    ledger, _ = taken(empty(tmp_path), rows[:40], heldout=range(0, 40, 3))
    ledger, _ = taken(ledger, rows[40:60], heldout=range(0, 20, 3))
    queries = [*rows, *(text(f"{row['text']} again") for row in rows)]
    said = asked(ledger, queries)
    assert all(fate.any() for fate in (said.known >= 0, said.contaminated, said.nearest.row >= 0))
    merged_in_part = replace(ledger, index=half_merged(ledger))
    assert same(asked(merged_in_part, queries), said)
    places = [f"0 {row}" for row in range(40)]
    assert asked(merged_in_part, rows[:40], places).seen.all()


def test_live_entries_add_up_to_the_rows(tmp_path: Path) -> None:
    ledger, kept = empty(tmp_path), 0
    for night in range(20):
        new = [text(f"{VOCABULARY[night]} {number} {VOCABULARY[-night]}") for number in range(7)]
        ledger, said = taken(ledger, [*new, new[0]], heldout=[2])
        kept += int(said.keep.sum())
    entries = {kind: sum(run.entries for run in ledger.index.runs[kind]) for kind in KINDS}
    assert entries == {"occurrences": 160, "contents": 140, "bands": 13 * kept, "grams": 20}
    assert sum(signed.rows for signed in ledger.index.signed) == kept == 140
    assert ledger.index.digests == {f"night-{night}" for night in range(20)}
    assert all(len(runs) <= 5 for runs in ledger.index.runs.values())


def test_a_night_without_a_row_changes_nothing(tmp_path: Path) -> None:
    ledger, _ = taken(empty(tmp_path), [text("one row")])
    after, said = taken(ledger, [])
    assert len(said.keep) == 0
    assert after.index.runs == ledger.index.runs
    assert after.index.signed == ledger.index.signed


def test_keys_of_another_algorithm_are_refused(tmp_path: Path) -> None:
    taken(empty(tmp_path), [text("one row")])
    with pytest.raises(ContractError) as caught:
        read_index(tmp_path / "night-0", "ab" * 32, 0.9)
    assert str(caught.value).splitlines() == [
        "ledger abababababab: its rows are known by keys that are made otherwise tonight, so none "
        "of them would be known again:",
        "  extend_ledger.near_duplicates (null is 0.99): 0.8, tonight 0.9",
        "Take that back; or give the line another `name`, under which it begins a ledger anew, "
        "with every row of its sources",
    ]


def test_a_ledger_is_full_when_row_numbers_are(tmp_path: Path) -> None:
    ledger = empty(tmp_path)
    batch = batch_at([text("the last"), text("one too many")], "ab", (1 << 32) - 1)
    said = asked(ledger, [text("the last"), text("one too many")])
    with pytest.raises(ContractError, match="row 4294967296 is one too many"):
        extend(ledger.index, tmp_path.joinpath, batch, said, said.keep, NOTHING, tmp_path)


def test_the_last_row_numbers_are_found(tmp_path: Path) -> None:
    last = (1 << 32) - 2
    words = " ".join(VOCABULARY[:60])
    ledger, _ = taken(replace(empty(tmp_path), rows=last), [text(words), text("another one")])
    assert asked(ledger, [text(f"{words} end")]).nearest.row.tolist() == [last]
    assert asked(ledger, [text(words)], ["elsewhere"]).known.tolist() == [last]
