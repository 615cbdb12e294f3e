"""The wealth is that of the package `ville`, which bets by the same theorem."""

import math

import numpy as np
import pytest
from ville import BettingTest

from requant.gate.evidence import BETS, GREATEST, LEAST, growth, log_wealth

MARGIN, REACH = 1.0, 10.0
NO_LIMIT = 1e-300
"""With it ville's own bets are greater than any it allows, so that it places the one given."""


def drawn(mean: float, count: int) -> np.ndarray:
    return np.clip(np.random.default_rng(7).normal(mean, 3, count), -REACH, REACH)


def test_each_bet_wins_what_ville_wins_with_the_same() -> None:
    values = drawn(0.0, 150)
    shares = np.geomspace(LEAST, GREATEST, BETS)
    theirs = [
        BettingTest(-MARGIN, (-REACH, REACH), "greater", alpha=NO_LIMIT, c=share)
        .fit(values)
        .log_e_values_[-1]
        for share in shares
    ]
    rates = growth(values, -MARGIN, -REACH)
    assert list(150 * rates) == pytest.approx(theirs)
    assert log_wealth(rates, 150) == pytest.approx(
        np.logaddexp.reduce(theirs) - math.log(len(shares))
    )


def test_evidence_against_is_villes_for_less() -> None:
    values = drawn(-3.0, 150)
    theirs = BettingTest(-MARGIN, (-REACH, REACH), "less", alpha=NO_LIMIT, c=GREATEST).fit(values)
    mirrored = growth(-values, MARGIN, -REACH)
    assert 150 * mirrored[-1] == pytest.approx(theirs.log_e_values_[-1])


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_many_fixed_bets_show_a_truth_no_later_than_villes_moving_one(spread: float) -> None:
    rng = np.random.default_rng(11)
    ours, theirs = [], []
    for _ in range(60):
        values = np.clip(rng.normal(0, spread, 300), -REACH, REACH)
        ours.append(float(log_wealth(growth(values, -MARGIN, -REACH), 300)))
        test = BettingTest(-MARGIN, (-REACH, REACH), "greater", alpha=0.05 / 365).fit(values)
        theirs.append(float(test.log_e_values_[-1]))
    assert np.median(ours) > np.median(theirs) - 1
