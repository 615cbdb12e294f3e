"""The scores of all models of a night: compared pair by pair, and written as an artifact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.errors import ParityError
from requant.evaluation.artifact import CHAIN, JUDGES, PAIRED, SCORES
from requant.evaluation.pairs import joined, unit_means
from requant.evaluation.samples import write_model
from requant.evaluation.scores import TaskScores
from requant.statistics import paired_difference

ModelScores = Mapping[str, Mapping[str, TaskScores]]
"""Model -> task -> its scores."""


def write_results(
    out: Path, scores: ModelScores, judged: ModelScores, paired: Sequence[Mapping[str, Any]]
) -> None:
    """Write scores.json, paired.json and samples/<model>.<task>.parquet.

    Args:
        out: Existing folder.
        scores: Of all models, on the same documents.
        judged: The same, with what more documents the gate wanted of some.
        paired: From `compare`.
    """
    table = {
        model: {
            task: {metric: asdict(estimate) for metric, estimate in result.metrics.items()}
            for task, result in tasks.items()
        }
        for model, tasks in scores.items()
    }
    (out / SCORES).write_bytes(canonical_json(table))
    (out / PAIRED).write_bytes(canonical_json(list(paired)))
    for model, tasks in judged.items():
        write_model(out, model, tasks)


def compare(scores: ModelScores, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compare each model with the one before it and with the first, and the last with the judges.

    Args:
        scores: Of all models, on the same documents.
        say: Hears which of them cannot be compared, and why.

    Returns:
        For each pair and task: earlier, later, task, metric, higher_is_better and the fields of
        `requant.statistics.Paired`, of the task's metric; better and worse, units (documents, or
        clusters of them) whose score went up and down; rate, where there are likelihoods: a
        `Paired` in nats a byte.
    """
    chain = [name for name in CHAIN if name in scores]
    steps = list(pairwise(chain))
    pairs = steps + [(chain[0], name) for name in chain[2:]]
    pairs += [(name, chain[-1]) for name in JUDGES if name in scores and chain]
    rows = []
    for earlier, later in pairs:
        for task, result in scores[later].items():
            try:
                found = joined(task, scores[earlier][task], result)
            except ParityError as error:
                say(f"{earlier} and {later} are not compared: {error}")
                continue
            if result.terms is None or not found:
                continue
            changes, rates = unit_means(found, "score"), unit_means(found, "fine")
            upward = result.terms.higher_is_better
            rows.append(
                {
                    "earlier": earlier,
                    "later": later,
                    "task": task,
                    "metric": result.terms.metric,
                    "higher_is_better": upward,
                    **asdict(paired_difference(changes)),
                    "better": sum((change > 0) == upward for change in changes if change),
                    "worse": sum((change < 0) == upward for change in changes if change),
                    "rate": asdict(paired_difference(rates))
                    if result.terms.kind == "log_likelihood"
                    else None,
                }
            )
    return rows


def of_all_documents(scores: ModelScores) -> str:
    """List the tasks of which there are only figures over all documents, with their metrics."""
    tasks = {
        task: ", ".join(result.metrics)
        for found in scores.values()
        for task, result in found.items()
        if result.terms is None
    }
    return "; ".join(f"{task} ({metrics})" for task, metrics in sorted(tasks.items()))
