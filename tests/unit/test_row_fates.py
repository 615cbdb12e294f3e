"""Fates of rows: they add up whatever is decided, and the outcome of a night settles its rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.data.rows import conversation
from requant.ledger.divide import divide
from requant.ledger.fates import Count, by_fate, moved, resolved
from requant.store.lines import Line, Outcome


def outcomes(**verdicts: str) -> Line:
    nights = {
        int(night.removeprefix("n")): Outcome(verdict=verdict)  # type: ignore[arg-type]
        for night, verdict in verdicts.items()
    }
    return Line(ledger=None, nights=nights)


def test_the_outcome_of_a_night_settles_the_rows_it_took() -> None:
    line = outcomes(n1="accepted", n2="refused", n3="pending", n4="released", n5="discarded")
    ends = [resolved("taken", night, line) for night in range(1, 7)]
    assert ends == ["trained", "set_aside", "set_aside", "waiting", "discarded", "training"]
    assert resolved("held_out", 2, line) == "held_out"


CELLS = st.tuples(
    st.integers(1, 3),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["taken", "waiting", "held_out", "quarantined"]),
    st.integers(1, 3),
)


@given(st.lists(CELLS), st.lists(CELLS), st.data())
def test_no_row_is_lost_or_counted_twice(first, later, data) -> None:  # type: ignore[no-untyped-def]
    counts = moved((), (), first)
    left = data.draw(st.permutations(first)).copy()[: len(first) // 2]
    after = moved(counts, left, later)
    rows = sum(each.rows for each in after)
    assert rows == len(first) - len(left) + len(later)
    fates = by_fate(after, outcomes(n1="accepted", n2="refused"))
    assert sum(sum(cell.values()) for cell in fates.values()) == rows


def test_more_rows_than_there_are_cannot_leave() -> None:
    counts = (Count(read=1, source="a", decided="waiting", night=1, rows=1),)
    with pytest.raises(ValueError, match="more rows left than there were"):
        moved(counts, [(1, "a", "waiting", 1)] * 2, [])


ROWS = [(number, conversation(f"question {number}?", f"answer {number}")) for number in range(200)]


@pytest.mark.parametrize("max_rows", [None, 1, 5])
def test_rows_of_which_none_would_be_trained_on_wait(max_rows: int | None) -> None:
    """One row must be measured on: a night of a single row, or group, would have no other."""
    group = [(number, {**row, "group": "tickets of one customer"}) for number, row in ROWS[:9]]
    for rows in (ROWS[:1], group):
        found = divide(rows, fraction=0.1, max_rows=max_rows, min_rows=1, seed=0)
        assert (found.training, found.held_out) == ((), ())
        assert found.waiting == tuple(number for number, _ in rows)
    found = divide(ROWS[:2], fraction=0.1, max_rows=max_rows, min_rows=1, seed=0)
    assert (len(found.training), len(found.held_out)) == (1, 1)


@given(st.integers(1, 200), st.none() | st.integers(1, 220), st.integers(0, 5))
def test_the_rows_that_wait_longest_are_taken_first(
    count: int, max_rows: int | None, seed: int
) -> None:
    rows = ROWS[:count]
    found = divide(rows, fraction=0.1, max_rows=max_rows, min_rows=8, seed=seed)
    numbers = [*found.training, *found.held_out, *found.waiting]
    assert sorted(numbers) == [number for number, _ in rows]
    if count < 8:
        assert found.waiting == tuple(range(count))
        return
    assert found.held_out
    assert found.training
    assert max_rows is None or len(found.training) <= max_rows
    assert not found.waiting or min(found.waiting) > max(found.training + found.held_out)
    whole = divide(rows, fraction=0.1, max_rows=None, min_rows=8, seed=seed)
    assert not whole.waiting
    if whole.held_out[0] in {*found.training, *found.held_out}:
        # A row's side does not depend on how many rows a night takes.
        assert set(found.held_out) <= set(whole.held_out)
