"""Intervals are Student's, in every place that shows one."""

import math

import pytest
from scipy import stats

from requant.statistics import Estimate, paired_difference, ratio_estimate, student_reach

DIFFERENCES = [0.3, -0.1, 0.7, 0.2, 0.4, -0.2, 0.5]


def test_a_paired_difference_is_that_of_the_paired_t_test() -> None:
    found = paired_difference(DIFFERENCES)
    expected = stats.ttest_1samp(DIFFERENCES, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_mean_per_token_of_equal_sequences_is_the_plain_mean() -> None:
    found = ratio_estimate([10 * value for value in DIFFERENCES], [10.0] * len(DIFFERENCES))
    plain = paired_difference(DIFFERENCES)
    assert found.mean == pytest.approx(plain.mean)
    assert found.error == pytest.approx(plain.stderr)
    assert found.interval(len(DIFFERENCES)) == pytest.approx((plain.low, plain.high))


def test_few_values_are_known_worse_than_by_the_normal_distribution() -> None:
    assert student_reach(1.0, 8) == pytest.approx(2.365, abs=1e-3)
    assert math.isnan(student_reach(1.0, 1))
    assert all(math.isnan(end) for end in Estimate(0.5, math.nan).interval(1))
