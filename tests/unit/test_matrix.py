"""The continual-learning matrix by hand: three generations on two documents a night."""

import math

import pytest

from requant.evaluation.matrix import Row, change, mean_scores, summary

ROWS = [
    Row(1, {1: {"a": -1.0, "b": -1.2}}),
    Row(2, {1: {"a": -0.9, "b": -1.1}, 2: {"c": -1.5, "d": -1.3}}),
    # Of night 1 one document was not asked again.
    Row(3, {1: {"a": -1.3}, 2: {"c": -1.4, "d": -1.2}, 3: {"e": -0.5, "f": -0.7}}),
]


def test_differences_are_of_documents_that_both_were_asked() -> None:
    found = change(ROWS[0], ROWS[2], 1)
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(-0.3), 1)
    assert change(ROWS[0], ROWS[1], 2) is None
    assert mean_scores(ROWS[1]) == {1: pytest.approx(-1.0), 2: pytest.approx(-1.4)}


def test_transfer_and_forgetting_are_the_papers() -> None:
    found = summary(ROWS)
    assert found is not None
    assert found.average.value == pytest.approx((-1.3 - 1.3 - 0.6) / 3)
    # Night 1: -1.3 + 1.0; night 2: -1.3 + 1.4.
    assert found.backward_transfer is not None
    assert found.backward_transfer.value == pytest.approx((-0.3 + 0.1) / 2)
    # The best before was -0.9 on night 1, and on night 2 generation 2 itself.
    assert found.forgetting is not None
    assert found.forgetting.value == pytest.approx((0.4 - 0.1) / 2)
    assert found.forgetting.nights == 2
    assert math.isnan(found.forgetting.stderr)
    first = summary(ROWS[:1])
    assert first is not None
    assert first.backward_transfer is None
    assert first.forgetting is None
    assert summary([]) is None
