"""How values and lists are put into messages."""

from typing import Any


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def short_count(count: int) -> str:
    """A count as 135M, 65.5k or 640."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.3g}k" if count < 999_500 else f"{count / 1e6:.4g}M"
