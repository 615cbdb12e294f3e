"""Bisection: any score that passes the middle between its ends is found, with few asked."""

from hypothesis import given
from hypothesis import strategies as st

from requant.evaluation.blame import turning_point


@given(
    last=st.integers(1, 200), turned=st.integers(1, 200), low=st.floats(-5, 5), rise=st.booleans()
)
def test_a_step_is_found(last: int, turned: int, low: float, rise: bool) -> None:
    turned = min(turned, last)
    asked = set()

    def score(index: int) -> float:
        asked.add(index)
        return low + (1.0 if (index >= turned) == rise else 0.0)

    assert turning_point(last, score) == turned
    assert len(asked) <= last.bit_length() + 2


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40).filter(lambda s: s[0] != s[-1]))
def test_of_any_scores_two_neighbours_on_both_sides_of_the_middle_are_found(
    scores: list[float],
) -> None:
    at = turning_point(len(scores) - 1, scores.__getitem__)
    middle = (scores[0] + scores[-1]) / 2
    assert (scores[at] > middle) == (scores[-1] > middle)
    assert (scores[at - 1] > middle) != (scores[-1] > middle)
