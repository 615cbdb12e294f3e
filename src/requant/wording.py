"""How values, lists and times are put into messages."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 120
"""Characters of a value in an error."""


def printable(text: object) -> str:
    """Text from outside on one line: what a terminal would obey or could not show is an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


CUT = re.compile(r"\.\.\. \(\d{1,15} characters more\)")
"""The ending of a message that was cut."""


def bounded(text: str, limit: int = 10_000) -> str:
    """A message of several lines, each `printable`, cut where it is longer than anybody reads.

    One that is bounded already comes back as it is, so that the count in it stays true.
    """
    whole = "\n".join(map(printable, text.splitlines())).rstrip("\n")
    rest = len(whole) - limit
    if rest <= 0 or CUT.fullmatch(whole, limit):
        return whole
    return f"{whole[:limit]}... ({rest} characters more)"


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    # Of a text of many megabytes no second one is made.
    text = repr(value[:SHOWN] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def duration(seconds: float) -> str:
    """Write a time as people say it: 0.3 s, 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def data_size(count: int) -> str:
    """Write a number of bytes in MiB, small ones with a decimal: 0.3 MiB, 512 MiB."""
    return f"{count / 2**20:.{0 if count >= 10 << 20 else 1}f} MiB"


NAMED = 5
"""What an error names of a list before it counts the rest."""


def few(names: Iterable[str]) -> str:
    """Name the first few and count the rest: `a, b, c, d, e and 7 more`."""
    listed = list(names)
    rest = len(listed) - NAMED
    return ", ".join(listed[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def few_lines(lines: Sequence[str], noun: str, limit: int = NAMED) -> list[str]:
    """Keep the first lines and count the rest in one more: `... and 7 more rows`."""
    rest = len(lines) - limit
    return [*lines[:limit], *([f"... and {rest} more {noun}"] if rest > 0 else [])]
