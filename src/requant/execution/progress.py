"""How far long work is: counted while it is done, and worded for a person."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from requant.execution.stage import Reporter
from requant.wording import duration

Item = TypeVar("Item")


def told(items: Sequence[Item], reporter: Reporter | None, unit: str) -> Iterator[Item]:
    """Yield the items, and tell the reporter, if there is one, of each once it is worked off."""
    for done, item in enumerate(items, 1):
        yield item
        if reporter:
            reporter.progress(done, len(items), unit)


@dataclass
class Pace:
    """Time left of long work, from its own speed.

    A stage does several long things one after the other; each begins where unit or total change,
    or the count falls. Work that is resumed counts from where it was resumed.
    """

    _what: tuple[int, str] = (0, "")
    _since: float = 0.0
    _first: int = 0
    _last: int = 0

    def seconds_left(self, done: int, total: int, unit: str, now: float) -> float | None:
        """Return the seconds left; None as long as there is no speed to tell them from.

        Args:
            done: Of `total`.
            total: Of the work.
            unit: What is counted.
            now: Seconds of a clock that never goes back.
        """
        if (total, unit) != self._what or done < self._last:
            self._what, self._since, self._first = (total, unit), now, done
        self._last = done
        worked = done - self._first
        return (now - self._since) / worked * (total - done) if worked else None


def progress_line(stage: str, done: int, total: int, unit: str, seconds_left: float | None) -> str:
    """Say how far a stage is: `train_adapter  running  34 of 60 steps, 2 min 10 s left`."""
    left = "" if seconds_left is None or done >= total else f", {duration(seconds_left)} left"
    return f"{stage}  running  {done:,} of {total:,} {unit}{left}"


def done_line(stage: str, state: str, seconds: float | None, headline: str) -> str:
    """Say what came of a stage: `train_adapter  done  2 min 30 s  loss 3.6 → 2.85`."""
    took = "" if seconds is None else duration(seconds)
    return "  ".join(part for part in (stage, state, took, headline) if part)
