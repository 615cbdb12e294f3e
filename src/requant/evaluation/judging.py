"""Two models' scores as the gate takes them: one difference a unit, and what is asked of it."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from requant.config.task_names import CHOICES, HELDOUT_PERPLEXITY
from requant.errors import ContractError
from requant.evaluation.pairs import Pair, joined, unit_means
from requant.evaluation.scores import TaskScores
from requant.gate import Differences, Rule
from requant.gate.rules import Role

REACHES = 10.0
"""Margins that one document counts at most: the mean of a hundred moves by a tenth of a margin."""


@dataclass(frozen=True)
class Margins:
    """What a guard may lose."""

    likelihood: float = 0.02
    """On average, in nats a byte: 2% of a perplexity of bytes."""
    accuracy: float = 0.02
    """On average, a share of documents, of tasks whose documents are right or wrong."""
    broken_share: float = 0.05
    """Share of documents that must not lose ten times as much."""


def spared(guards: Collection[str]) -> frozenset[str]:
    """Return the guards of which no broken documents are looked for: choices beside texts.

    A choice is scored by a contrast. Where a base knows no answer each training moves the wrong
    ones as far as the right one, either way and by ten margins in honest nights; what breaks shows
    in the texts of the same rows, where these guard too.

    Args:
        guards: All that guard.
    """
    return frozenset(CHOICES if HELDOUT_PERPLEXITY in guards else ())


def likelihood_rule(role: Role, margins: Margins, *, tails: bool = True) -> Rule:
    """Return what is asked of a task whose documents are scored in nats a byte.

    Args:
        role: guard or target.
        margins: What a guard may lose.
        tails: Whether broken documents are looked for.
    """
    return Rule(
        role,
        margin=margins.likelihood,
        reach=REACHES * margins.likelihood,
        broken_share=margins.broken_share,
        tails=tails,
    )


def question(
    task: str,
    role: Role,
    reference: str,
    before: TaskScores,
    after: TaskScores,
    margins: Margins,
    *,
    tails: bool = True,
) -> tuple[Rule, Differences]:
    """Ask one task whether a candidate lost too much, or gained, against a reference.

    Documents are looked at in the order of their digests, which nobody chose; those of one cluster
    are one unit.

    Args:
        task: Its name.
        role: guard or target.
        reference: What the other model is called.
        before: Its scores.
        after: The candidate's.
        margins: Of which the one of the kind of the scores counts.
        tails: Whether broken documents are looked for, see `spared`.

    Raises:
        ParityError: As `joined`.
        ContractError: If the task's own number is neither a likelihood nor right or wrong.
    """
    if after.terms is None:
        raise ContractError(
            f"{task}: its figures are of all documents at once, so nothing can be judged by it; "
            "choose another task"
        )
    pairs = sorted(joined(task, before, after), key=lambda pair: _place(task, pair))
    values = unit_means(pairs, "fine")
    if after.terms.kind == "log_likelihood":
        rule = likelihood_rule(role, margins, tails=tails)
        return rule, Differences(task, reference, "log_likelihood", values)
    scores = {each.score for pair in pairs for each in pair}
    if not scores <= {0.0, 1.0}:
        raise ContractError(
            f"{task}: its {after.terms.metric} is neither a likelihood nor 0 or 1 for each "
            "document, so what it may lose is not known; choose another task"
        )
    upward = after.terms.higher_is_better
    if not upward:
        values = [-value for value in values]
    rule = Rule(role, margin=margins.accuracy, reach=1.0)
    changes = [(later.score - earlier.score) * (1 if upward else -1) for earlier, later in pairs]
    flips = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
    return rule, Differences(task, reference, "accuracy", values, flips)


def _place(task: str, pair: Pair) -> str:
    return hashlib.sha256(f"{task} {pair[0].document} {pair[0].id}".encode()).hexdigest()
