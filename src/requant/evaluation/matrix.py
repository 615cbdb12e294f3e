"""How well every generation does on what each night held out: what was kept, and what forgotten.

R[i, j] is generation i's mean score, nats a byte, on documents of night j. With T the last one:

    average            mean over j <= T of R[T, j]
    backward transfer  mean over j < T of R[T, j] - R[j, j]
    forgetting         mean over j < T of max over l < T of R[l, j], minus R[T, j]

(Lopez-Paz & Ranzato 2017, arXiv:1706.08840; Chaudhry et al. 2018, arXiv:1801.10112). Differences
are taken document by document, on those that both generations were asked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.config.task_names import HELDOUT_PERPLEXITY, PAST_PERPLEXITY
from requant.data.artifact import HELDOUT, task_documents
from requant.data.overlap import normalised, past_heldout
from requant.data.samples import read_rows
from requant.evaluation.evaluated import evaluated_nights
from requant.evaluation.night_verdict import CANDIDATE
from requant.evaluation.samples import read_models
from requant.evaluation.scores import TaskScores
from requant.evaluation.tasks import AFTER_QUESTION_VERSION, answer_documents
from requant.execution.past_nights import DATASETS, nights_ago
from requant.statistics import Paired, paired_difference
from requant.store import StageRecord, Store, holds, materialise
from requant.store.lines import descent, read_line

Documents = Mapping[str, float]
"""Text -> its log-likelihood, nats a byte."""


@dataclass(frozen=True)
class Row:
    """A generation's scores."""

    night: int
    """Number of the night that made it."""
    nights: Mapping[int, Documents]
    """Number of a night, its own among them -> scores on what that night held out."""


@dataclass(frozen=True)
class Mean:
    """A mean over nights, with its standard error over documents."""

    value: float
    stderr: float
    """NaN where a night has one document."""
    nights: int


@dataclass(frozen=True)
class Summary:
    """What the last generation of a line kept of all nights; higher is better but of forgetting."""

    average: Mean
    backward_transfer: Mean | None
    """None for the first generation."""
    forgetting: Mean | None


def line_rows(store: Store, name: str) -> list[Row]:
    """Return the scores of a line's generations, from the first to the newest, parent by parent.

    An evaluation that is not in the state folder any more leaves its generation out.

    Raises:
        ArtifactError: If the head of the line cannot be believed.
    """
    evaluations = evaluated_nights(store, name)
    nights = {item.key_fields["inputs"]["data"]: night for night, item in evaluations.items()}
    return [
        Row(night, scores_of(store, evaluations[night], nights))
        for night in descent(read_line(store, name).nights)
        if night in evaluations and holds(store, evaluations[night].digest)
    ]


def scores_of(store: Store, record: StageRecord, nights: Mapping[str, int]) -> dict[int, Documents]:
    """Read what an evaluation says of its 4-bit model on the held-out part of each night.

    Args:
        store: That holds the evaluation, and the datasets that it asked from.
        record: Of the evaluation.
        nights: Digest of a dataset -> number of its night; others are left out.

    Raises:
        ArtifactError: If the store does not hold one of them.
    """
    inputs: Mapping[str, str] = record.key_fields["inputs"]
    samples = read_models(materialise(store, record.digest), CANDIDATE).get(CANDIDATE, {})
    data = materialise(store, inputs["data"])
    found: dict[int, dict[str, float]] = {}
    if (own := nights.get(inputs["data"])) and (scores := samples.get(HELDOUT_PERPLEXITY)):
        with task_documents(data, HELDOUT_PERPLEXITY).open() as file:
            names = {each["id"]: _name(each, scores) for each in map(json.loads, file)}
        found[own] = {names[each.id]: each.fine for each in scores.documents}
    roles = sorted((nights_ago(DATASETS, role), role) for role in inputs)
    past = [
        (nights.get(inputs[role]), materialise(store, inputs[role])) for age, role in roles if age
    ]
    if past and (scores := samples.get(PAST_PERPLEXITY)):
        limit = record.key_fields["config"]["past_rows"]
        rows, _ = past_heldout([folder for _, folder in past], data, limit)
        owners = _owners(past)
        asked = [
            (owners[normalised(row)], _name(each, scores))
            for row in rows
            for each in answer_documents([row])
        ]
        for each in scores.documents:
            night, name = asked[each.id]
            if night is not None:
                found.setdefault(night, {})[name] = each.fine
    return dict(found)


def _name(document: Mapping[str, Any], scores: TaskScores) -> str:
    """Tell documents apart by what was asked of a model: many questions may have one answer."""
    version = scores.terms.version if scores.terms else ""
    asked = version == str(AFTER_QUESTION_VERSION)
    # A text from nothing and the same after an empty question are two measurements.
    return f"{version}\n\n{document.get('question', '') if asked else ''}\n\n{document['text']}"


def mean_scores(row: Row) -> dict[int, float]:
    """Return night -> mean score of a generation, nats a byte."""
    return {
        night: math.fsum(scores.values()) / len(scores)
        for night, scores in sorted(row.nights.items())
        if scores
    }


def change(before: Row, after: Row, night: int) -> Paired | None:
    """Compare two generations on what both were asked of a night; None where that is nothing."""
    ours, theirs = after.nights.get(night, {}), before.nights.get(night, {})
    both = sorted(ours.keys() & theirs.keys())
    return paired_difference([ours[key] - theirs[key] for key in both]) if both else None


def summary(rows: Sequence[Row]) -> Summary | None:
    """Say what the last generation kept.

    Args:
        rows: Of the generations of one line, each the child of the one before.

    Returns:
        None where the last one was asked nothing.
    """
    if not rows or not any(rows[-1].nights.values()):
        return None
    last = rows[-1]
    own = [paired_difference(list(scores.values())) for scores in last.nights.values() if scores]
    earlier = [row for row in rows[:-1] if row.nights.get(row.night)]
    backward = [found for row in earlier if (found := change(row, last, row.night))]
    lost = []
    for row in earlier:
        changes = [found for other in rows[:-1] if (found := change(other, last, row.night))]
        if changes:
            lost.append(min(changes, key=lambda found: found.mean))
    return Summary(
        average=_mean(own),
        backward_transfer=_mean(backward) if backward else None,
        forgetting=_mean(lost, sign=-1.0) if lost else None,
    )


def _mean(found: Sequence[Paired], sign: float = 1.0) -> Mean:
    count = len(found)
    errors = [math.nan if each.stderr is None else each.stderr for each in found]
    return Mean(
        value=sign * math.fsum(each.mean for each in found) / count,
        stderr=math.sqrt(math.fsum(error**2 for error in errors)) / count,
        nights=count,
    )


def _owners(past: Sequence[tuple[int | None, Path]]) -> dict[str, int | None]:
    """Return text of a held-out row -> night whose it is, as `past_heldout` goes through them."""
    found: dict[str, int | None] = {}
    for night, folder in past:
        for row in read_rows(folder / HELDOUT):
            found.setdefault(normalised(row), night)
    return found
