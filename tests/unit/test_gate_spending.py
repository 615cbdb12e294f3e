"""No span of 365 days spends more than a year's alpha, whatever is asked and when."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.errors import ContractError
from requant.gate import Grant, Look, grant

FIRST = date(2026, 1, 1)
YEAR = timedelta(days=365)


def day(offset: int) -> str:
    return (FIRST + timedelta(days=offset)).isoformat()


def asked(ledger: list[Look], offset: int, name: str, nights: int = 365) -> Grant:
    """Ask for the alpha of a test, and write down the look, promoted or not."""
    granted = grant(ledger, (name, "champion", "documents"), day(offset), nights=nights)
    ledger.append(
        Look(name, "champion", "documents", day(offset), granted.alpha, "not enough evidence")
    )
    return granted


requests = st.lists(
    st.tuples(st.integers(0, 1200), st.integers(0, 12), st.sampled_from([3, 5, 365])),
    max_size=60,
)


@given(requests, st.booleans())
def test_no_365_days_spend_more_than_the_years_alpha(
    wanted: list[tuple[int, int, int]], in_order: bool
) -> None:
    """Also with looks made again, a number of nights that changes, and a clock that jumps back."""
    ledger: list[Look] = []
    for place, (offset, name, nights) in enumerate(sorted(wanted) if in_order else wanted):
        asked(ledger, offset, f"{name}" if in_order else f"{place}", nights)
    looks = [(date.fromisoformat(look.day), look) for look in ledger]
    for end, _ in looks:
        inside = {look.test: look.alpha for at, look in looks if end - YEAR < at <= end}
        assert sum(inside.values()) <= 0.05 * (1 + 1e-9)


def test_a_year_of_one_test_a_night_is_paid_for_and_so_is_the_next() -> None:
    ledger: list[Look] = []
    for night in range(800):
        assert asked(ledger, night, f"candidate {night}").alpha == pytest.approx(0.05 / 365)


def test_who_retrains_until_it_passes_runs_out_and_is_told_until_when() -> None:
    ledger: list[Look] = []
    granted = [asked(ledger, tries // 10, f"try {tries}") for tries in range(366)]
    assert all(each.alpha > 0 for each in granted[:365])
    last = granted[365]
    assert (last.alpha, last.next_day) == (0.0, day(365))
    assert last.left == pytest.approx(0, abs=1e-12)
    assert asked(ledger, 364, "too early").alpha == 0
    assert asked(ledger, 365, "in time").alpha > 0


def test_to_look_again_at_the_same_documents_is_no_new_test() -> None:
    ledger: list[Look] = []
    first = asked(ledger, 0, "candidate", nights=1)
    again = asked(ledger, 300, "candidate", nights=1)
    assert (first.again, again.again, again.alpha) == (False, True, first.alpha)
    # The second look holds the alpha as long as a first one would.
    for offset in (350, 400):
        assert asked(ledger, offset, "other", nights=1).next_day == day(300 + 365)
    assert asked(ledger, 665, "other", nights=1).alpha == 0.05


def test_other_documents_or_another_champion_are_a_new_test() -> None:
    ledger: list[Look] = []
    asked(ledger, 0, "candidate")
    for test in (("candidate", "champion", "others"), ("candidate", "other", "documents")):
        assert not grant(ledger, test, day(1)).again


def test_a_test_that_got_nothing_may_ask_again() -> None:
    ledger: list[Look] = []
    asked(ledger, 0, "first", nights=1)
    assert asked(ledger, 1, "second", nights=1).alpha == 0
    later = asked(ledger, 365, "second", nights=1)
    assert (later.alpha, later.again) == (0.05, False)


def test_a_day_that_is_none_is_named() -> None:
    with pytest.raises(ContractError, match=r"holds the day '2026-13-01'; a day is written"):
        grant([Look("a", "b", "c", "2026-13-01", 0.01, "refuse")], ("x", "b", "c"), day(0))
