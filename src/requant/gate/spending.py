"""A year's chance of a harmful promotion, and what of it a test of tonight may take.

Each test gets a share of the year's alpha: alpha_year / nights. By the union bound the chance of
any harmful promotion within a span of days is at most the sum of what the tests of that span were
given. So the sum over any 365 days must not exceed alpha_year. To look again at the same candidate,
champion and documents is no new test: the evidence holds whenever one looks
(`requant.gate.evidence`), and the test keeps the alpha that it was given. Each look is written down
all the same, since a look is what may promote: a test counts in every span of days that holds one
of its looks. docs/gate.md says for which trainers the union bound holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from requant.errors import ContractError

YEAR = 365
"""Days that alpha_year is for."""


@dataclass(frozen=True)
class Look:
    """A verdict that was given, as the ledger of a model line keeps it."""

    candidate: str
    champion: str
    documents: str
    """Digest of all documents that may be looked at, and of their order; not of the first few of
    them, so that to look at more of them is no new test."""
    day: str
    """ISO date."""
    alpha: float
    verdict: str

    @property
    def test(self) -> tuple[str, str, str]:
        """What makes it the same test."""
        return self.candidate, self.champion, self.documents


@dataclass(frozen=True)
class Grant:
    """What a test may take."""

    alpha: float
    """0 where nothing is left."""
    left: float
    """What the year's alpha had left before this test took its own."""
    again: bool
    """The same test was granted its alpha before."""
    next_day: str | None
    """ISO date at which enough is left; None where something was granted."""


def grant(
    ledger: Sequence[Look],
    test: tuple[str, str, str],
    today: str,
    alpha_year: float = 0.05,
    nights: int = YEAR,
) -> Grant:
    """Return what alpha the test of candidate, champion and documents may take today.

    Args:
        ledger: All looks of the model line.
        test: Digests of candidate, champion and documents.
        today: ISO date.
        alpha_year: Allowed chance of any harmful promotion in 365 days.
        nights: Tests that share it. More tests than that in 365 days get nothing.

    Raises:
        ContractError: If a date of the ledger, or today, is none.
    """
    now = _day(today)
    held = _held(ledger, now)
    left = alpha_year - math.fsum(alpha for alpha, _ in held.values())
    if test in held:
        return Grant(alpha=held[test][0], left=left, again=True, next_day=None)
    share = alpha_year / nights
    # 364 shares and one more must fit however their sum was rounded.
    if left >= share * (1 - 1e-9):
        return Grant(alpha=min(share, left), left=left, again=False, next_day=None)
    oldest = sorted(held.values(), key=lambda each: each[1])
    free, freed = now, left
    for alpha, last in oldest:
        free, freed = last + timedelta(days=YEAR), freed + alpha
        if freed >= share * (1 - 1e-9):
            break
    return Grant(alpha=0.0, left=max(0.0, left), again=False, next_day=free.isoformat())


def _held(ledger: Sequence[Look], now: date) -> dict[tuple[str, str, str], tuple[float, date]]:
    """Return each test of the 365 days up to now, with the most it was given and its last look.

    A look dated later than now, by a clock that was wrong, counts too; one that was granted
    nothing could not promote.
    """
    held: dict[tuple[str, str, str], tuple[float, date]] = {}
    for look in ledger:
        day = _day(look.day)
        if look.alpha > 0 and day > now - timedelta(days=YEAR):
            alpha, last = held.get(look.test, (0.0, day))
            held[look.test] = max(alpha, look.alpha), max(last, day)
    return held


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ContractError(
            f"gate: the ledger of tests holds the day {text!r}; a day is written 2026-11-26"
        ) from None
