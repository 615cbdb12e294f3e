"""To look at more documents, as long as the gate has not seen enough to decide."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from requant.config.evaluation import Evaluate
from requant.evaluation.blocks import Ids, Units, next_block
from requant.evaluation.night_verdict import CANDIDATE, judge_night, references
from requant.evaluation.results import ModelScores
from requant.evaluation.scores import TaskScores

More = Callable[[str, Ids], Mapping[str, TaskScores]]
"""Evaluates a model on further documents of tasks."""


def judged_scores(
    first: ModelScores,
    section: Evaluate,
    order: Units,
    more: More,
    say: Callable[[str], None],
) -> ModelScores:
    """Evaluate the models of the gate on ever more documents, until it decides or none are left.

    The evidence holds whenever one looks (`requant.gate.evidence`), so looking costs no error.
    Each time on twice as many, because each look loads the models anew.

    Args:
        first: Scores of every model on the first documents.
        section: Says how many those are, and what must be shown.
        order: Task -> all its units in the order in which they are looked at.
        more: Evaluates one model on some more.
        say: Hears each verdict.

    Returns:
        `first`, with the further documents of the models that are judged.
    """
    pools = {task: len(units) for task, units in order.items()}
    judged = (CANDIDATE, *references(first, section.gate))
    scores, seen = first, section.first_documents
    if CANDIDATE not in first or len(judged) < 2:
        return scores
    while True:
        decision = judge_night(scores, section.gate, pools)
        say(f"the gate, having seen at most {seen} documents of each task: {decision.verdict}")
        # Only what is open needs more.
        counts = {
            each.task: len(scores[CANDIDATE][each.task].documents)
            for each in decision.findings
            if each.state == "open" and each.task in order
        }
        seen *= 2
        further = next_block(order, counts, seen)
        if decision.verdict != "not enough evidence" or not further:
            return scores
        for name in judged:
            scores = {**scores, name: _extended(scores[name], more(name, further))}


def _extended(
    known: Mapping[str, TaskScores], found: Mapping[str, TaskScores]
) -> dict[str, TaskScores]:
    """Add further documents; figures over all documents stay those of the first ones."""
    return dict(known) | {
        task: replace(
            known[task],
            documents=tuple(
                sorted((*known[task].documents, *result.documents), key=lambda each: each.id)
            ),
        )
        for task, result in found.items()
    }
