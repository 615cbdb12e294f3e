"""Wealth won by betting against a mean: at most 1 on average where that mean is the truth."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from requant.gate.evidence import bets, growth, log_wealth, units_until
from requant.gate.several import adjusted

REACH, MARGIN = 10.0, 1.0
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(0, 3, shape)


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return 2 * rng.standard_t(3, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Mostly a small gain, at times a great loss: the shape that fools Student's t."""
    return 1 - rng.exponential(1, shape) ** 2 / 2


def rare(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """One unit of fifty loses all that counts."""
    return np.where(rng.random(shape) < 0.02, -9.0, 9 * 0.02 / 0.98)


def at_the_boundary(draw: Draw, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Values within reach whose mean is -MARGIN, as found on many more of them."""
    middle = np.clip(draw(np.random.default_rng(99), (1, 200_000)), -8, 8).mean()
    values = np.clip(draw(np.random.default_rng(seed), shape), -8, 8)
    return np.clip(values - middle - MARGIN, -REACH, REACH)


def paths(values: np.ndarray, null: float, least: float) -> np.ndarray:
    """log K_n after each value of each sequence."""
    stakes = bets(null, least)
    logs = [np.cumsum(np.log1p(stake * (values - null)), axis=1) for stake in stakes]
    return np.logaddexp.reduce(logs, axis=0) - math.log(len(stakes))


@pytest.mark.parametrize("draw", [normal, heavy, skewed, rare])
def test_no_more_than_alpha_of_all_sequences_ever_show_what_is_not_so(draw: Draw) -> None:
    values = at_the_boundary(draw, 1, (1000, 400))
    for alpha in (0.2, 0.05):
        crossed = int((paths(values, -MARGIN, -REACH).max(axis=1) >= -math.log(alpha)).sum())
        # Such a count, or a greater one, would be a surprise if the chance were alpha or less.
        assert binomtest(crossed, 1000, alpha, alternative="greater").pvalue > 0.001


def test_students_interval_shows_what_is_not_so_where_losses_are_rare() -> None:
    values = at_the_boundary(rare, 1, (1000, 30))
    error = values.std(axis=1, ddof=1) / math.sqrt(30)
    found = (values.mean(axis=1) - 2.045 * error > -MARGIN).mean()
    assert found > 0.4
    assert (paths(values, -MARGIN, -REACH)[:, -1] >= -math.log(0.025)).mean() <= 0.025


@pytest.mark.parametrize(
    ("outcomes", "null"),
    [({-1.0: 0.5, 1.0: 0.5}, 0.0), ({-1.0: 0.1, 0.0: 0.8, 0.5: 0.1}, -0.05), ({-0.2: 1.0}, -0.2)],
)
def test_wealth_is_one_on_average_over_all_sequences(
    outcomes: dict[float, float], null: float
) -> None:
    for length in (1, 2, 5):
        mean = 0.0
        for sequence in itertools.product(outcomes, repeat=length):
            chance = math.prod(outcomes[value] for value in sequence)
            values = np.array(sequence)
            mean += chance * math.exp(log_wealth(growth(values, null, -1.0), length))
        assert mean == pytest.approx(1.0, abs=1e-9)


def test_wealth_is_below_one_on_average_where_the_mean_is_below_the_null() -> None:
    mean = sum(
        0.4 ** sequence.count(1.0)
        * 0.6 ** sequence.count(-1.0)
        * math.exp(log_wealth(growth(np.array(sequence), 0.0, -1.0), 6))
        for sequence in itertools.product((-1.0, 1.0), repeat=6)
    )
    assert mean < 0.8


values_within = st.lists(st.floats(-REACH, REACH), min_size=1, max_size=60)


@given(values_within, st.randoms())
def test_wealth_does_not_hang_on_the_order_of_units(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = log_wealth(growth(np.array(values), -MARGIN, -REACH), len(values))
    two = log_wealth(growth(np.array(shuffled), -MARGIN, -REACH), len(values))
    assert one == pytest.approx(two)


@given(values_within, st.floats(0, 5))
def test_a_better_unit_never_takes_evidence_away(values: list[float], gain: float) -> None:
    better = np.minimum(np.array(values) + gain, REACH)
    earlier = log_wealth(growth(np.array(values), -MARGIN, -REACH), len(values))
    assert log_wealth(growth(better, -MARGIN, -REACH), len(values)) >= earlier - 1e-9


@given(values_within)
def test_a_mean_on_the_wrong_side_is_no_evidence_however_it_scatters(values: list[float]) -> None:
    lowered = np.clip(np.array(values) - max(0.0, np.mean(values) + MARGIN), -REACH, REACH)
    rates = growth(lowered, -MARGIN, -REACH)
    if lowered.mean() <= -MARGIN:
        assert log_wealth(rates, len(values)) <= 1e-9
        assert units_until(rates, 3.0) is None or rates.max() < 1e-9


@given(values_within, st.floats(0.5, 20))
def test_the_units_that_would_decide_are_the_first_at_which_evidence_is_enough(
    values: list[float], wanted: float
) -> None:
    rates = growth(np.array(values), -MARGIN, -REACH)
    needed = units_until(rates, wanted)
    if needed is None:
        assert all(log_wealth(rates, count) < wanted for count in (1, 10, 1000))
    else:
        assert log_wealth(rates, needed) >= wanted > log_wealth(rates, needed - 1)


def test_no_value_is_no_evidence() -> None:
    assert log_wealth(growth(np.array([]), -1.0, -10.0), 0) == 0
    assert units_until(growth(np.array([]), -1.0, -10.0), 3.0) is None


def test_many_samples_are_weighed_at_once() -> None:
    many = np.random.default_rng(3).uniform(-10, 10, (4, 50))
    together = log_wealth(growth(many, -1.0, -10.0), 50)
    assert list(together) == pytest.approx(
        [float(log_wealth(growth(each, -1.0, -10.0), 50)) for each in many]
    )


log_e_values = st.lists(st.floats(-20, 20), min_size=1, max_size=6)


@given(log_e_values, st.sampled_from([0.05, 0.001]))
def test_evidence_of_several_tasks_rejects_all_that_holm_does(
    log_e: list[float], alpha: float
) -> None:
    found = adjusted(log_e)
    order = sorted(range(len(log_e)), key=lambda place: -log_e[place])
    for rank, place in enumerate(order):
        if log_e[place] < math.log((len(log_e) - rank) / alpha):
            break
        assert found[place] >= -math.log(alpha) - 1e-9
    assert all(one <= own + 1e-9 for one, own in zip(found, log_e, strict=True))


def test_the_best_of_several_tasks_is_worth_their_mean_and_the_worst_its_own() -> None:
    best, middle, worst = adjusted([math.log(300), math.log(30), math.log(0.3)])
    assert math.exp(best) == pytest.approx((300 + 30 + 0.3) / 3)
    assert math.exp(middle) == pytest.approx((30 + 0.3) / 2)
    assert math.exp(worst) == pytest.approx(0.3)
    assert adjusted([2.0]) == [2.0]
    assert adjusted([]) == []


def test_the_luckiest_of_twenty_useless_tasks_shows_nothing() -> None:
    # The greatest e-values there are: 20 with a chance of 1 in 20, else nothing.
    lucky = np.random.default_rng(5).random((300, 20)) < 0.05
    log_e = np.where(lucky, math.log(20), -30.0)
    judged = sum(max(adjusted(list(row))) >= math.log(20) for row in log_e)
    assert lucky.any(axis=1).mean() > 0.6
    assert binomtest(judged, 300, 0.05, alternative="greater").pvalue > 0.001
