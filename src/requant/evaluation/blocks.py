"""Which documents of a task are evaluated first, and which next where the gate wants more."""

import random
from collections.abc import Mapping, Sequence

Ids = Mapping[str, Sequence[int]]
"""Task -> places of documents in it."""
Units = Mapping[str, Sequence[Sequence[int]]]
"""Task -> units of it, a document alone or a group; each the places of its documents."""


def drawn(units: Units, seed: int, limit: int | None) -> dict[str, list[list[int]]]:
    """Draw the order in which the units of each task are looked at.

    A file may be sorted by topic; any beginning of a drawn order is a sample of all of it.

    Args:
        units: Task -> units there are.
        seed: Of the draw.
        limit: Documents at most.
    """
    order = {}
    for task, found in units.items():
        count = len(found)
        places = random.Random(f"{seed}-{task}").sample(range(count), min(count, limit or count))
        order[task] = _limited([found[place] for place in places], limit)
    return order


def first_block(order: Units, count: int) -> dict[str, list[int]]:
    """Take the first units of each task, ascending: lm-eval numbers what it is given so.

    Units are taken whole, as what the gate has seen of one must not change when it looks again.

    Args:
        order: From `drawn`.
        count: Documents of a task at most, but for a first unit that has more.
    """
    taken: dict[str, list[int]] = {}
    for task, units in order.items():
        found: list[int] = []
        for unit in units:
            if found and len(found) + len(unit) > count:
                break
            found += unit
        taken[task] = sorted(found)
    return taken


def next_block(order: Units, seen: Mapping[str, int], until: int) -> dict[str, list[int]]:
    """Take the units that follow of some tasks, ascending; those of which none is left are out.

    Args:
        order: From `drawn`.
        seen: Task -> documents that were evaluated, of whole units.
        until: Documents of a task in all, with which no further unit is begun.
    """
    taken: dict[str, list[int]] = {}
    for task, count in seen.items():
        found: list[int] = []
        passed = 0
        for unit in order[task]:
            if passed >= count:
                if found and passed >= until:
                    break
                found += unit
            passed += len(unit)
        if found:
            taken[task] = sorted(found)
    return taken


def _limited(units: Sequence[Sequence[int]], limit: int | None) -> list[list[int]]:
    """Keep so many documents; the last unit may lose some, and is then no other on any look."""
    kept: list[list[int]] = []
    left = sum(map(len, units)) if limit is None else limit
    for unit in units:
        if left <= 0:
            break
        kept.append(list(unit[:left]))
        left -= len(unit)
    return kept
