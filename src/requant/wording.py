"""How values, lists and times are put into messages."""

from collections.abc import Iterable, Sequence
from typing import Any


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def first_few(lines: Sequence[str], limit: int = 10) -> str:
    """The first lines of many, one under the other, and how many rows are not named."""
    more = len(lines) - limit
    return "\n".join([*lines[:limit], *([f"... and {more} more rows"] if more > 0 else [])])


def short_count(count: int) -> str:
    """A count as 135M, 65.5k or 640."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.3g}k" if count < 999_500 else f"{count / 1e6:.4g}M"


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


NAMED = 5
"""Tensors named in an error before the rest is counted."""


def few(names: Iterable[str]) -> str:
    """Name the first few and count the rest."""
    listed = list(names)
    rest = len(listed) - NAMED
    return ", ".join(listed[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
