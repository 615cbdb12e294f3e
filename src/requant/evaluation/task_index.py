"""What lm-eval's task files say of a task, before any of its data is there."""

from collections.abc import Mapping
from typing import Any

CORPUS_METRICS = frozenset(
    {"bleu", "brier_score", "chrf", "chrf++", "f1", "matthews_corrcoef", "mcc", "ter"}
)
"""Metrics and aggregations of lm-eval's own that are of all documents at once: for one document
they are a pair of gold and answer. A task's own code may give the names numbers, and says so by
another aggregation, e.g. mean."""


def leaf_tasks(index: Mapping[str, Any], name: str) -> list[str]:
    """Return the tasks a name stands for: itself, or the members of a group or tag, to the leaves.

    Args:
        index: `lm_eval.tasks.TaskManager.task_index`.
        name: In it.
    """
    entry = index[name]
    kind = entry.kind.name
    if kind == "TAG":
        return sorted(task for task in entry.tags if task in index)
    if kind != "GROUP":
        return [name]
    found: list[str] = []
    for item in (entry.cfg or {}).get("task") or ():
        member = item if isinstance(item, str) else item.get("group") or item.get("task")
        # What a group defines in place has a name of the group's.
        found += leaf_tasks(index, member) if member in index else [f"{name}::{member}"]
    return found


def corpus_only(index: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """Return a task's metrics if each is of all documents at once, so that none can be paired.

    Empty where one is a number for each document, or where only the task's own code knows.
    """
    entry = index.get(task)
    metrics = ((entry.cfg if entry else None) or {}).get("metric_list") or ()
    named = [
        (str(item["metric"]), str(item.get("aggregation", item["metric"]))) for item in metrics
    ]
    if all(aggregation in CORPUS_METRICS for _, aggregation in named):
        return tuple(metric for metric, _ in named)
    return ()
