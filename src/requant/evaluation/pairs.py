"""Two models' scores on the same documents, joined document by document."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from requant.errors import ParityError
from requant.evaluation.scores import DocumentScore, TaskScores

Pair = tuple[DocumentScore, DocumentScore]
"""(of the earlier model, of the later one)"""


def joined(task: str, earlier: TaskScores, later: TaskScores) -> list[Pair]:
    """Pair the scores of two models by document and prompt.

    Args:
        task: Its name, for the error's text.
        earlier: Of one model.
        later: Of the other, on the same task.

    Returns:
        In the order of the documents; none where the task has no score for each document.

    Raises:
        ParityError: Naming the field in which they differ: the task's version, the metric, few-shot
            examples, limit, template or harness; or if they were not asked the same.
    """
    if earlier.terms is None or later.terms is None:
        return []
    before, after = asdict(earlier.terms), asdict(later.terms)
    for field in before:
        if before[field] != after[field]:
            raise ParityError(
                f"{task}: the two models' scores cannot be compared: {field} was "
                f"{before[field]!r} for one and {after[field]!r} for the other; evaluate both alike"
            )
    ours, theirs = _asked(earlier.documents), _asked(later.documents)
    if ours.keys() != theirs.keys():
        only = len(ours.keys() ^ theirs.keys())
        raise ParityError(
            f"{task}: the two models were not asked the same: {only} documents or prompts are "
            f"those of one alone, {len(ours.keys() & theirs.keys())} of both; evaluate both alike"
        )
    return [(ours[asked], theirs[asked]) for asked in ours]


def by_unit(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Put the pairs of one cluster together, in the order of their first; others stand alone."""
    found: dict[object, list[Pair]] = {}
    for pair in pairs:
        score = pair[1]
        found.setdefault(score.cluster or (score.id, score.document, score.prompt), []).append(pair)
    return list(found.values())


def unit_means(pairs: Sequence[Pair], of: Literal["score", "fine"]) -> list[float]:
    """Return later minus earlier score, the mean of each unit's documents.

    Documents of one cluster are alike: counted one by one they would be taken for more evidence
    than they are.
    """
    return [
        math.fsum(getattr(after, of) - getattr(before, of) for before, after in unit) / len(unit)
        for unit in by_unit(pairs)
    ]


def _asked(documents: Sequence[DocumentScore]) -> dict[tuple[int, str, str], DocumentScore]:
    return {(each.id, each.document, each.prompt): each for each in documents}
