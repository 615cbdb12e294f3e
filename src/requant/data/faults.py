"""What is wrong with rows, said once a cause and with how many rows it concerns."""

from collections.abc import Iterable
from dataclasses import dataclass

NAMED = 3
"""Places of one cause, and causes of one kind, that are named; the others are counted."""


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be trained on or measured."""

    place: str
    """File and line."""
    kind: str
    """What such rows are counted by."""
    text: str
    of_template: bool
    """Every row would fail so: the chat template is to be mended, not the row."""


def listed(faults: Iterable[Fault]) -> list[str]:
    """List faults, one line a text: first places, count, rule.

    Args:
        faults: In the order of the rows; a fault given twice counts once.

    Returns:
        Of a kind the first `NAMED` lines, then how many more rows it concerns.
    """
    kinds: dict[str, dict[str, list[Fault]]] = {}
    for fault in dict.fromkeys(faults):
        kinds.setdefault(fault.kind, {}).setdefault(fault.text, []).append(fault)
    lines = []
    for kind, causes in kinds.items():
        alike = list(causes.values())
        lines += [_line(found) for found in alike[:NAMED]]
        if more := sum(map(len, alike[NAMED:])):
            lines.append(f"... and {_rows(more, more=True)}: {kind}")
    return lines


def _line(alike: list[Fault]) -> str:
    first = alike[0]
    if first.of_template:
        return f"{first.text} ({_rows(len(alike))}, the first is {first.place})"
    places = "; ".join(fault.place for fault in alike[:NAMED])
    more = len(alike) - NAMED
    return f"{places}{f' and {_rows(more, more=True)}' if more > 0 else ''}: {first.text}"


def _rows(count: int, *, more: bool = False) -> str:
    return f"{count} {'more ' if more else ''}row{'s' if count > 1 else ''}"
