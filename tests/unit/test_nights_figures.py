"""Figures of the nights' benchmark, on courses whose gains and losses are known."""

import pytest

from benchmarks.nights.figures import (
    Course,
    forgetting,
    gains,
    learned,
    mean_gain,
    old_skill,
    shares,
)
from benchmarks.nights.scores import OLD
from benchmarks.nights.texts import DOMAINS, NIGHTS, repetitions

DOCUMENTS = 4


def course(lost: float) -> Course:
    """Each domain's night teaches 1 nat a byte, and each later one takes `lost` of it."""
    taught = {domain: NIGHTS.index(domain) + 1 for domain in DOMAINS}
    teaching = sorted(taught.values())

    def score(night: int, domain: str) -> float:
        if night < taught[domain]:
            return -3.0
        return -2.0 - lost * sum(taught[domain] < other <= night for other in teaching)

    matrix = [
        {
            **{domain: [score(night, domain)] * DOCUMENTS for domain in DOMAINS},
            OLD: [-1.0 - 0.01 * night] * DOCUMENTS,
        }
        for night in range(len(NIGHTS) + 1)
    ]
    return Course([], matrix)


def test_gains_forgetting_and_old_skill_are_those_that_were_put_in() -> None:
    courses = [course(0.1), course(0.1)]
    assert all(learned(courses, domain).mean == pytest.approx(1) for domain in DOMAINS)
    # The first of six domains loses five tenths, the last but one a tenth.
    assert forgetting(courses).mean == pytest.approx(0.3)
    assert gains(courses)[DOMAINS[0]].mean == pytest.approx(0.5)
    assert mean_gain(courses).mean == pytest.approx(1 - 0.25)
    assert shares(courses, [course(0.0)])[DOMAINS[0]] == pytest.approx(0.5)
    assert old_skill(courses).mean == pytest.approx(-0.01 * len(NIGHTS))
    assert forgetting([course(0.0)]).mean == 0


def test_a_night_of_repetitions_has_nothing_new() -> None:
    seen = [{"text": str(number)} for number in range(20)]
    heldout = [{"text": f"held out {number}"} for number in range(20)]
    found = repetitions(seen, heldout, 12, seed=0)
    assert len(found) == 12
    assert all(row in [*seen, *heldout] for row in found)
    assert any(row in heldout for row in found)
