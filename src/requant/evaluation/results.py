"""The scores of all models of a night: compared pair by pair, and written as an artifact."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.errors import ParityError
from requant.evaluation.artifact import CHAIN, JUDGES, PAIRED, SAMPLES, SCORES
from requant.evaluation.pairs import joined
from requant.evaluation.samples import write_samples
from requant.evaluation.scores import TaskScores
from requant.names import file_name
from requant.statistics import paired_difference

ModelScores = Mapping[str, Mapping[str, TaskScores]]
"""Model -> task -> its scores."""


def write_results(
    out: Path, scores: ModelScores, judged: ModelScores, say: Callable[[str], None]
) -> None:
    """Write scores.json, paired.json and samples/<model>.<task>.parquet.

    Args:
        out: Existing folder.
        scores: Of all models, on the same documents.
        judged: The same, with what more documents the gate wanted of some.
        say: Hears which of them cannot be compared, and why.
    """
    table = {
        model: {
            task: {metric: asdict(estimate) for metric, estimate in result.metrics.items()}
            for task, result in tasks.items()
        }
        for model, tasks in scores.items()
    }
    (out / SCORES).write_bytes(canonical_json(table))
    (out / PAIRED).write_bytes(canonical_json(compare(scores, say)))
    (out / SAMPLES).mkdir()
    for model, tasks in judged.items():
        for task, result in tasks.items():
            if result.terms is not None:
                write_samples(out / SAMPLES / f"{model}.{file_name(task)}.parquet", task, result)


def compare(scores: ModelScores, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compare each model with the one before it, and the last with the first and the judges.

    Returns:
        For each pair and task: earlier, later, task, metric, higher_is_better and the fields of
        `requant.statistics.Paired`.
    """
    chain = [name for name in CHAIN if name in scores]
    pairs = list(pairwise(chain))
    if len(chain) > 2:
        pairs.append((chain[0], chain[-1]))
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
            difference = paired_difference([after.score - before.score for before, after in found])
            rows.append(
                {
                    "earlier": earlier,
                    "later": later,
                    "task": task,
                    "metric": result.terms.metric,
                    "higher_is_better": result.terms.higher_is_better,
                    **asdict(difference),
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
