"""Kills in nights of a data ledger, while rows arrive; and the nights that nobody killed.

One line is killed again and again. Another, below it, is given in each night what the first one
took in it, and is left in peace: both must come to the same bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.chaos.ledger_checks import check, check_fates
from tests.chaos.ledger_line import Played, arrive, decide, night, ready
from tests.chaos.strikes import (
    ATTEMPTS,
    Length,
    Moment,
    Phase,
    Strike,
    finished,
    length_of,
    struck_once,
)

NIGHT = Phase("night", "locks/line-micro", "open ended")
"""A child's night, from where it looks at the head of its line."""
ENOUGH = 10
"""Rows with which a night has something to do."""
DURABLE = r"^rename "
"""What puts a document or an artifact in its place."""
Uniform = Callable[[], float]


def kills_in_nights(folder: Path, base: Path, count: int, uniform: Uniform) -> Iterator[Strike]:
    """Kill nights of one line `count` times, and check what came of it.

    Raises:
        AssertionError: If a row was lost, trained twice, or something is not as it is in peace.
    """
    played = ready(folder, base, seed=int(uniform() * 2**32))
    yield from struck_nights(played, count, uniform)
    to_the_end(played)
    check(played)


def struck_nights(played: Played, count: int, uniform: Uniform) -> Iterator[Strike]:
    """Kill nights before a write, or at a time, drawn from their whole way."""
    length, found = measured(played), 0
    for attempt in range(ATTEMPTS * count):
        if found == count:
            return
        fraction = uniform()
        at_time = Moment(fraction, seconds=fraction * length.seconds)
        at_write = Moment(fraction, write=1 + int(fraction * length.writes))
        for strike in _killed(played, at_time if attempt % 2 else at_write):
            found += 1
            yield strike
    raise AssertionError(f"{found} of {ATTEMPTS * count} nights were killed before their end")


def struck_before_each_write(played: Played) -> Iterator[Strike]:
    """Kill one night before its first durable write, the next before its second, and so on."""
    measured(played)
    for number in range(1, 1000):
        arrive(played, least=ENOUGH)
        found = list(_killed(played, Moment(0.0, write=number), only=DURABLE))
        yield from found
        if not found:
            break
        decide_between_nights(played)
        finished(played.log, night, played.config)
    to_the_end(played)


def measured(played: Played) -> Length:
    """Let a night in peace, and measure it."""
    arrive(played, least=ENOUGH)
    finished(played.log, night, played.config)
    return length_of(played.log, NIGHT)


def _killed(played: Played, moment: Moment, only: str = "") -> Iterator[Strike]:
    """Kill a night once, or yield nothing where it came to its end before."""
    decide_between_nights(played)
    arrive(played)
    struck = struck_once(played.log, NIGHT, moment, night, played.config, only=only)
    begun = played.line().begun
    if begun and begun.rows:
        assert played.taken.setdefault(begun.at, begun.rows) == begun.rows
    if struck is not None:
        took = [name for name in ("rows", "ledger") if begun and getattr(begun, name)]
        yield replace(struck, came=f"took {' and '.join(took) or 'nothing'}")
    check_fates(played)
    if played.draw.random() < 0.5:
        arrive(played)


def to_the_end(played: Played) -> None:
    """Let nights in peace until none has anything to do with what is there."""
    while True:
        decide_between_nights(played)
        before = played.line()
        finished(played.log, night, played.config)
        if played.line().ledger == before.ledger and before.begun is None:
            return


def decide_between_nights(played: Played) -> None:
    if played.line().begun is None:
        decide(played.config)
