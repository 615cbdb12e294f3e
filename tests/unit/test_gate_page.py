"""docs/gate.md says what the gate computes, and a few of its simulated years come out so."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from benchmarks.gate_years import simulated
from requant.gate.evidence import bets, growth, log_wealth, units_until

PAGE = (Path(__file__).parents[2] / "docs" / "gate.md").read_text()
WANTED = math.log(365 / 0.05)


def figure_after(text: str) -> float:
    found = re.search(re.escape(text) + r"\s*([\d.]+)", PAGE)
    assert found, text
    return float(found[1].rstrip("."))


def test_the_worked_example_comes_out_as_written() -> None:
    values = np.array([0.0] * 240 + [-0.02] * 30 + [0.02] * 30)
    rates, whole = growth(values, -0.01, -0.1), growth(np.zeros(300), -0.05, -1.0)
    stake = bets(-0.01, -0.1)[-1]
    for text, figure in (
        ("0.98 / 0.09 =", stake),
        ("multiplies the wealth by", 1 + stake * 0.01),
        ("a gaining one by", 1 + stake * 0.03),
        ("30 ln 1.3267 =", 300 * rates[-1]),
        ("the mean over the eight bets:", log_wealth(rates, 300)),
        ("evidence of that:", log_wealth(whole, 300)),
        ("needed, ln(365 / 0.05):", WANTED),
        ("Of units like these", units_until(rates, WANTED)),
        ("enough for the mean,", units_until(whole, WANTED)),
    ):
        assert figure_after(text) == pytest.approx(figure, rel=6e-4)


def test_the_units_of_the_tables_are_those_of_a_normal_sample() -> None:
    normal = norm.ppf((np.arange(2000) + 0.5) / 2000)

    def units(mean: float, spread: float, null: float, reach: float) -> int | None:
        values = np.clip(mean + spread * normal, -reach, reach)
        return units_until(growth(values, null, -reach), WANTED)

    guards, targets = PAGE.split("## Choosing")[1].split("| target's gain")
    rows = re.findall(r"^\| (\d) \| (\d+) \| (\d+) \| (\d+) \|$", guards, re.M)
    assert len(rows) == 4
    for spread, *found in rows:
        assert [units(0, float(spread), -1, reach) for reach in (5, 10, 20)] == [
            int(each) for each in found
        ]
    rows = re.findall(r"^\| (0\.\d) \| (\d+) \| (\d+) \| (\d+) \|$", targets, re.M)
    assert len(rows) == 3
    for gain, *found in rows:
        assert [units(float(gain), 1, 0, reach) for reach in (3, 5, 10)] == [
            int(each) for each in found
        ]


@pytest.mark.parametrize("kind", ["useless", "worse", "poison", "drift, reused"])
def test_years_of_harm_stay_within_the_years_alpha(kind: str) -> None:
    found = simulated(kind, years=30)
    assert binomtest(found.harmed, 30, 0.05, alternative="greater").pvalue > 0.001
    if kind != "drift, reused":
        assert found.today > 15


def test_honest_nights_are_promoted() -> None:
    assert simulated("honest", years=3).promoted > 0.8 * 365
