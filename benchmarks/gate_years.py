"""Years of nights with a known truth: how often does the gate promote what harms?

Every night a candidate is judged on a guard and on a target, by the evidence, the thresholds and
the ledger's alpha of `requant.gate`. A guard's margin is 1 here, whatever the score's unit; a unit
counts at most 10. A third of the years each has differences that are normal, heavy-tailed
(Student's t with 3 degrees of freedom) and skewed (a small gain mostly, at times a great loss), all
of the same spread.

`python -m benchmarks.gate_years` prints the tables of docs/gate.md.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest, t, trim_mean

from benchmarks.measurement import Measurement
from requant.gate import Look, Rule, grant
from requant.gate.evidence import bets, growth, log_wealth

Array = np.ndarray
YEARS, NIGHTS, UNITS = 10_000, 365, 500
SPREAD = 2.0
"""Standard deviation of a guard's differences, in margins."""
GUARD = Rule("guard", margin=1.0, reach=10.0)
ANCHOR_MARGIN = 2.0
ALPHA_YEAR = 0.05
GAIN = 0.3
"""Stated improvement of the target, in standard deviations of its differences."""
FEW = 64
"""Units of today's rule: as many as the issue's figures are of."""
REACH_OF_FEW = float(t.ppf(0.975, FEW - 1)) / math.sqrt(FEW)
CHUNK = 250
"""Years at once."""


@dataclass(frozen=True)
class Found:
    """What came of the years of one kind of night."""

    kind: str
    years: int
    harmed: int
    """Years with a harmful promotion."""
    promoted: float
    """Promotions a year."""
    today: int
    """Years with a harmful promotion by today's rule."""

    @property
    def upper(self) -> float:
        """Clopper and Pearson's upper end of the chance of such a year (one-sided, 95%)."""
        test = binomtest(self.harmed, self.years, alternative="less")
        return float(test.proportion_ci(0.95, "exact").high)


def drawn(rng: np.random.Generator, shape: tuple[int, ...], tail: int) -> Array:
    """Differences of mean 0 and standard deviation 1: normal, heavy-tailed or skewed."""
    normal = rng.standard_normal(shape, dtype=np.float32)
    if tail == 0:
        return normal
    if tail == 1:
        # Student's t of 3 degrees of freedom has a variance of 3.
        squares = rng.standard_gamma(1.5, shape, dtype=np.float32) * np.float32(2 / 3)
        return normal / np.sqrt(squares * 3, out=squares)
    return 1 - rng.standard_exponential(shape, dtype=np.float32)


def shows(values: Array, null: float, alpha: float, reach: float = GUARD.reach) -> Array:
    """Tell for each sample (samples, n) whether evidence against a mean of `null` is enough.

    A bet wins at most its stake times the sum, as log(1 + y) <= y: only samples whose sum may be
    enough are weighed.
    """
    wanted = -math.log(alpha)
    counted = np.clip(values, -reach, reach)
    count = values.shape[-1]
    sums = counted.sum(-1, dtype=np.float64) - count * null
    passing = sums * bets(null, -reach)[-1] >= wanted
    if passing.any():
        rates = growth(counted[passing].astype(np.float64), null, -reach)
        passing[passing] = log_wealth(rates, count) >= wanted
    return passing


def kept_whole(values: Array, alpha: float) -> Array:
    """Tell for each sample whether few enough units are shown to be broken."""
    return (_whole(values.shape[-1]) >= -math.log(alpha))[(values < -GUARD.reach).sum(-1)]


@cache
def _whole(units: int) -> Array:
    """Evidence that few enough units are broken, for each number of broken ones from 0 on."""
    marks = -np.tri(units + 1, units, -1)
    return log_wealth(growth(marks, -GUARD.broken_share, -1.0), units)


def guard_passes(values: Array, margin: float, alpha: float) -> Array:
    """The guard's conditions, the cheapest that fails first."""
    passing = values.mean(-1) > -margin
    passing[passing] = kept_whole(values[passing], alpha)
    passing[passing] = shows(values[passing], -margin, alpha)
    passing[passing] = trim_mean(values[passing], 0.1, axis=-1) > -margin
    return passing


def target_passes(values: Array, alpha: float) -> Array:
    """The target's conditions, the cheapest that fails first."""
    passing = values.mean(-1) > 0
    passing[passing] = shows(values[passing], 0.0, alpha)
    passing[passing] = trim_mean(values[passing], 0.1, axis=-1) > 0
    return passing


def today_passes(values: Array) -> Array:
    """Today's gate on FEW units: the 95% interval does not lie wholly below zero."""
    few = values[:, :FEW]
    return few.mean(-1) + REACH_OF_FEW * few.std(-1, ddof=1) >= 0


def alphas(tests_a_night: int, nights: int = NIGHTS) -> list[float]:
    """Return what the ledger grants to each test of a year, night by night."""
    ledger: list[Look] = []
    first = np.datetime64("2026-01-01")
    for night in range(nights):
        for test in range(tests_a_night):
            day, name = str(first + night), f"{night} {test}"
            given = grant(ledger, (name, "", ""), day, ALPHA_YEAR)
            if not given.alpha:
                return [look.alpha for look in ledger]
            ledger.append(Look(name, "", "", day, given.alpha, "refuse"))
    return [look.alpha for look in ledger]


def chunks(years: int) -> Iterator[tuple[int, int]]:
    """Years at once and the shape of their differences, a third of the years each."""
    for tail in range(3):
        of_tail = years // 3 + (tail < years % 3)
        for start in range(0, of_tail, CHUNK):
            yield min(CHUNK, of_tail - start), tail


def one_truth(kind: str, years: int, seed: int) -> Found:
    """Simulate years in which every candidate has the same truth.

    honest: no loss on the guard, the stated gain; nothing is harmful. useless: no gain; to promote
    it is the error. worse: the guard loses just the margin. poison: one unit in twenty loses 40
    margins, the others gain half a margin, and the target gains twice the stated. reused: `worse`,
    all nights on the same text, half of each difference being the document's. retrains: `worse`,
    ten tries a night until the year's alpha is spent.
    """
    rng = np.random.default_rng([seed, len(kind)])
    granted = alphas(10 if kind == "retrains" else 1)
    harmed = promoted = today = 0
    for count, tail in chunks(years):
        any_harm, any_today = np.zeros(count, bool), np.zeros(count, bool)
        document = drawn(rng, (count, UNITS), tail)
        for alpha in granted:
            guard = SPREAD * drawn(rng, (count, UNITS), tail)
            if kind == "reused":
                guard = math.sqrt(0.5) * (guard + SPREAD * document)
            if kind == "poison":
                guard += 0.5
                guard[rng.random(guard.shape, dtype=np.float32) < 0.05] = -40.0
            guard -= GUARD.margin if kind in {"worse", "reused", "retrains"} else 0.0
            any_today |= today_passes(guard) & (kind != "honest")
            # What decides is looked at first, the rest only where that passes.
            passing = np.ones(count, bool)
            gain = {"useless": 0.0, "honest": GAIN}.get(kind, 2 * GAIN)
            for role in ("target", "guard") if kind == "useless" else ("guard", "target"):
                place = np.flatnonzero(passing)
                if not len(place):
                    break
                if role == "guard":
                    passing[place] = guard_passes(guard[place], GUARD.margin, alpha)
                else:
                    target = SPREAD * (drawn(rng, (len(place), UNITS), tail) + gain)
                    passing[place] = target_passes(target, alpha)
            promoted += int(passing.sum())
            any_harm |= passing & (kind != "honest")
        harmed += int(any_harm.sum())
        today += int(any_today.sum())
    return Found(kind, years, harmed, promoted / years, today)


def drift(kind: str, years: int, seed: int) -> Found:
    """Simulate years in which each candidate loses half a margin against what serves.

    That passes against the champion at times, and each time the next candidate starts from there.
    A promotion is harmful that brings the line to the anchor's margin below the anchor. With
    "drift, reused" all nights are judged on the same text: what was promoted was lucky on it, and
    its luck stays in all that is trained from it.
    """
    rng = np.random.default_rng([seed, len(kind)])
    step = -0.5
    granted, reused = alphas(1), kind.endswith("reused")
    harmed = promoted = today = 0
    for count, tail in chunks(years):
        any_harm, any_today = np.zeros(count, bool), np.zeros(count, bool)
        truth, luck = np.zeros(count), np.zeros((count, UNITS), np.float32)
        truth_today = np.zeros(count)
        for alpha in granted:
            news = SPREAD * drawn(rng, (count, UNITS), tail)
            before = luck if reused else SPREAD * drawn(rng, (count, UNITS), tail)
            anchor = before + news + (truth + step)[:, None].astype(np.float32)
            passing = guard_passes(anchor, ANCHOR_MARGIN, alpha)
            passing[passing] = guard_passes(news[passing] + step, GUARD.margin, alpha)
            promoted += int(passing.sum())
            any_harm |= passing & (truth + step <= -ANCHOR_MARGIN)
            truth += np.where(passing, step, 0.0)
            if reused:
                luck[passing] += news[passing]
            against_base = news + (truth_today + step)[:, None].astype(np.float32)
            truth_today += np.where(today_passes(against_base), step, 0.0)
            any_today |= truth_today <= -ANCHOR_MARGIN
        harmed += int(any_harm.sum())
        today += int(any_today.sum())
    return Found(kind, years, harmed, promoted / years, today)


KINDS = ("honest", "useless", "worse", "poison", "reused", "retrains", "drift", "drift, reused")


def simulated(kind: str, years: int = YEARS, seed: int = 1) -> Found:
    """Simulate so many years of one kind of night; a twentieth of them if nothing can do harm."""
    years = max(3, years // 20) if kind == "honest" else years
    return (drift if kind.startswith("drift") else one_truth)(kind, years, seed)


def power(gain: float, spread: float, units: int, nights: int = 1500, seed: int = 2) -> float:
    """Return the share of nights that promote a candidate with no loss and a gain.

    Args:
        gain: On the target, in standard deviations of its differences.
        spread: Standard deviation of the guard's differences, in margins.
        units: Of guard and target.
    """
    rng, alpha, passed = np.random.default_rng(seed), ALPHA_YEAR / NIGHTS, 0
    for tail in range(3):
        shape = (nights // 3, units)
        guards = guard_passes(spread * drawn(rng, shape, tail), GUARD.margin, alpha)
        anchors = guard_passes(spread * drawn(rng, shape, tail), ANCHOR_MARGIN, alpha)
        target = SPREAD * (drawn(rng, shape, tail) + gain)
        passed += int((guards & anchors & target_passes(target, alpha)).sum())
    return passed / (nights // 3 * 3)


def main(years: int) -> list[Found]:
    """Print both tables."""
    console, found = Console(width=150), []
    years_table = Table(
        "nights", "years", "harmful", "upper end", "promotions a year", f"today's rule, {FEW} units"
    )
    for kind in KINDS:
        started = time.monotonic()
        each = simulated(kind, years)
        found.append(each)
        years_table.add_row(
            kind,
            str(each.years),
            f"{each.harmed / each.years:.2%} ({each.harmed})",
            f"{each.upper:.2%}",
            f"{each.promoted:.3g}",
            f"{each.today / each.years:.1%}",
        )
        print(each, f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    console.print(years_table)
    sizes = (200, 300, 400, 500, 800, 1600)
    powers = Table("gain, spreads", "guard's spread, margins", *(f"{size} units" for size in sizes))
    for gain in (0.2, 0.3, 0.5):
        for spread in (1.0, 2.0, 4.0):
            shares = (f"{power(gain, spread, size):.0%}" for size in sizes)
            powers.add_row(f"{gain}", f"{spread:g}", *shares)
    console.print(powers)
    return found


def measure() -> Measurement:
    """Simulate 10,000 years of every kind of night, and the stated power."""
    found = main(YEARS)
    worst = max((each for each in found if each.kind != "honest"), key=lambda each: each.upper)
    seen = power(GAIN, SPREAD, UNITS)
    return Measurement(
        claim="years in which the gate promotes what harms",
        measured=(
            f"at most {worst.upper:.2%} ({worst.kind}); a gain of {GAIN} spreads on {UNITS} units "
            f"is promoted in {seen:.0%} of nights"
        ),
        limit=f"<= {ALPHA_YEAR:.0%}; >= 80%",
        holds=worst.upper <= ALPHA_YEAR and seen >= 0.8,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else YEARS)
