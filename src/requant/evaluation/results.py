"""The scores of all models of a night: compared pair by pair, and written as an artifact."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.data.rows import write_jsonl
from requant.evaluation.artifact import MODELS, PAIRED, SAMPLES, SCORES
from requant.evaluation.lm_eval import TaskScores, is_likelihood, paired
from requant.names import file_name

ModelScores = Mapping[str, Mapping[str, TaskScores]]
"""Model -> task -> its scores."""


def write_results(out: Path, scores: ModelScores) -> None:
    """Write scores.json, paired.json and samples/<model>.<task>.jsonl."""
    table = {
        model: {
            task: {metric: asdict(estimate) for metric, estimate in result.metrics.items()}
            for task, result in tasks.items()
        }
        for model, tasks in scores.items()
    }
    (out / SCORES).write_bytes(canonical_json(table))
    (out / PAIRED).write_bytes(canonical_json(compare(scores)))
    for model, tasks in scores.items():
        for task, result in tasks.items():
            if result.documents:
                rows = [asdict(document) for document in result.documents]
                write_jsonl(out / SAMPLES / f"{model}.{file_name(task)}.jsonl", rows)


def compare(scores: ModelScores) -> list[dict[str, Any]]:
    """Compare each model with the one before it in the chain, and the last with the first.

    Returns:
        For each pair and task: earlier, later, task, metric, higher_is_better and the fields of
        `requant.statistics.Paired`.
    """
    chain = [name for name in MODELS if name in scores]
    pairs = list(pairwise(chain))
    if len(chain) > 2:
        pairs.append((chain[0], chain[-1]))
    return [
        {
            "earlier": earlier,
            "later": later,
            "task": task,
            "metric": _document_metric(result),
            "higher_is_better": result.higher_is_better,
            **asdict(paired(scores[earlier][task].documents, result.documents)),
        }
        for earlier, later in pairs
        for task, result in scores[later].items()
        if result.documents
    ]


def of_all_documents(scores: ModelScores) -> str:
    """List the tasks of which there are only figures over all documents, with their metrics."""
    tasks = {
        task: ", ".join(result.metrics)
        for found in scores.values()
        for task, result in found.items()
        if result.main is None
    }
    return "; ".join(f"{task} ({metrics})" for task, metrics in sorted(tasks.items()))


def _document_metric(result: TaskScores) -> str:
    main = str(result.main)
    return "log_likelihood" if is_likelihood(main) else main
