"""Which documents of a task are evaluated first, and which next where the gate wants more."""

import random
from collections.abc import Mapping, Sequence

Ids = Mapping[str, Sequence[int]]
"""Task -> places of documents in it."""


def drawn(pools: Mapping[str, int], seed: int, limit: int | None) -> dict[str, list[int]]:
    """Draw the order in which the documents of each task are looked at.

    A file may be sorted by topic; any beginning of a drawn order is a sample of all of it.

    Args:
        pools: Task -> documents there are.
        seed: Of the draw.
        limit: Documents at most.
    """
    return {
        task: random.Random(f"{seed}-{task}").sample(range(count), min(count, limit or count))
        for task, count in pools.items()
    }


def first_block(order: Ids, count: int) -> dict[str, list[int]]:
    """Take the first documents of each task, ascending: lm-eval numbers what it is given so."""
    return {task: sorted(places[:count]) for task, places in order.items()}


def next_block(order: Ids, seen: Mapping[str, int], until: int) -> dict[str, list[int]]:
    """Take what follows of some tasks, ascending; those of which nothing is left are out.

    Args:
        order: From `drawn`.
        seen: Task -> documents that were evaluated.
        until: Documents of a task in all.
    """
    taken = {task: sorted(order[task][count:until]) for task, count in seen.items()}
    return {task: places for task, places in taken.items() if places}
