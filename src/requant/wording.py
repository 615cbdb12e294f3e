"""How values and lists are put into messages."""

from collections.abc import Sequence
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
