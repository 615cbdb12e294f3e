"""Sorted runs on disk against plain lists, and what of them is merged."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requant.ledger.runs import (
    KEYS,
    PARTS,
    Columns,
    match,
    merged,
    sizes_of_parts,
    starts_of_parts,
    write_run,
)
from requant.ledger.tiers import due
from requant.ledger.words import Flags

EVERY = np.ones(PARTS, bool)
WEIGHTS = np.arange(PARTS)
KEY = st.builds(lambda part, rest: part << 56 | rest, st.integers(0, 255), st.integers(0, 3))
"""Few keys, so that many are equal."""


def columns(keys: list[int], first: int = 0) -> Columns:
    """Entries whose payload is where they stood."""
    rows = np.arange(first, first + len(keys), dtype=np.uint32)
    return {KEYS: np.array(keys, np.uint64), "rows": rows}


def in_order(keys: list[int], first: int = 0) -> Columns:
    return merged([], columns(keys, first))


@settings(max_examples=60, deadline=None)
@given(st.lists(KEY, min_size=1, max_size=60), st.lists(KEY, max_size=40), st.sets(KEY))
def test_a_run_finds_the_first_entries_of_each_key_in_its_live_parts(
    keys: list[int], queries: list[int], dead: set[int]
) -> None:
    live = EVERY.copy()
    live[[key >> 56 for key in dead]] = False
    queries = sorted(queries)
    with TemporaryDirectory() as name:
        write_run(Path(name, "run"), in_order(keys), WEIGHTS)
        found = match(Path(name, "run"), live, np.array(queries, np.uint64), most=2)
    of_key = [
        [row for row, key in enumerate(keys) if key == query and live[key >> 56]]
        for query in queries
    ]
    pairs = [(at, row) for at, rows in enumerate(of_key) for row in rows[:2]]
    assert list(zip(found.which.tolist(), found.columns["rows"].tolist(), strict=True)) == pairs
    assert found.left_out == sum(max(len(rows) - 2, 0) for rows in of_key)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(KEY, min_size=1, max_size=40), min_size=1, max_size=4), st.data())
def test_merged_runs_are_the_sorted_concatenation_of_their_parts(
    lists: list[list[int]], data: st.DataObject
) -> None:
    *old, new = lists
    expected: list[tuple[int, int]] = []
    with TemporaryDirectory() as name:
        parts: list[tuple[Path, Flags]] = []
        for run, keys in enumerate(old):
            write_run(Path(name, str(run)), in_order(keys, 100 * run), WEIGHTS)
            chosen = EVERY.copy()
            chosen[list(data.draw(st.sets(st.integers(0, 255))))] = False
            parts.append((Path(name, str(run)), chosen))
            expected += [
                (key, 100 * run + row) for row, key in enumerate(keys) if chosen[key >> 56]
            ]
        found = merged(parts, columns(new, 900))
    expected += [(key, 900 + row) for row, key in enumerate(new)]
    # Rows are given out in the order of the runs, so sorting by both is sorting stably by key.
    pairs = zip(found[KEYS].tolist(), found["rows"].tolist(), strict=True)
    assert list(pairs) == sorted(expected)


def test_parts_are_cut_by_the_first_byte(tmp_path: Path) -> None:
    keys = [0, 5, 1 << 56, (2 << 56) - 1, 255 << 56, (1 << 64) - 1]
    write_run(tmp_path / "run", in_order(keys), WEIGHTS)
    sizes = sizes_of_parts(tmp_path / "run")
    assert {part: int(size) for part, size in enumerate(sizes) if size} == {0: 2, 1: 2, 255: 2}
    assert starts_of_parts(np.empty(0, np.uint64)).tolist() == [0] * (PARTS + 1)


def test_equal_runs_have_equal_bytes(tmp_path: Path) -> None:
    keys = np.random.default_rng(1).integers(0, 1 << 64, 1000, np.uint64).tolist()
    for name in "ab":
        write_run(tmp_path / name, in_order(keys), WEIGHTS)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), max_size=6),
    st.integers(1, 200),
    st.integers(0, 300),
)
def test_merges_are_bounded_and_take_the_youngest_runs_of_a_part(
    old: list[list[int]], new: int, few: int
) -> None:
    sizes = np.zeros((len(old), PARTS), np.int64)
    for run, of_run in enumerate(old):
        sizes[run, :4] = of_run
    weights = PARTS * sizes
    chosen, boundless = due(sizes, weights, new, 2, few), due(sizes, weights, new, 10**6, 0)
    assert sizes[chosen].sum() <= max(2 * new, few)
    for part in range(4):
        # What is merged tonight is what would be without a limit, or nothing.
        assert not chosen[:, part].any() or (chosen[:, part] == boundless[:, part]).all()
        for run in np.flatnonzero(boundless[:, part]):
            assert not ((sizes[run + 1 :, part] > 0) & ~boundless[run + 1 :, part]).any()


@pytest.mark.parametrize("a_night", [300, 300_000])
@pytest.mark.parametrize("nights", [1, 50, 300])
def test_few_runs_are_looked_into_and_few_entries_written_again(nights: int, a_night: int) -> None:
    draw, again = np.random.default_rng(1), 0
    sizes = weights = np.empty((0, PARTS), np.int64)
    for _ in range(nights):
        chosen = due(sizes, weights, a_night, few=0)
        work = int(sizes[chosen].sum())
        assert work <= 8 * a_night
        again += work
        own = draw.multinomial(a_night, np.full(PARTS, 1 / PARTS)) + (sizes * chosen).sum(axis=0)
        sizes = np.vstack([sizes * ~chosen, own])
        weights = np.vstack([weights * ~chosen, a_night + (weights * chosen).sum(axis=0)])
        sizes, weights = sizes[weights.any(axis=1)], weights[weights.any(axis=1)]
    assert sizes.sum() == nights * a_night
    assert (sizes > 0).sum(axis=0).mean() <= 1 + np.log2(nights)
    assert again <= nights * a_night * np.log2(nights + 1) / 2
