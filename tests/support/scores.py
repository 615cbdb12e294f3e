"""Scores of models that nobody trained: documents of known difficulty, models of known skill."""

import random
from collections.abc import Iterable

from requant.evaluation.scores import DocumentScore, TaskScores, Terms

TASKS = ("heldout_perplexity", "old_perplexity")
POOL = 512
TERMS = Terms("2.0", "log_likelihood", "log_likelihood", True, 0, None, None, "lm_eval 0")


def task_scores(task: str, seed: int, mean: float, ids: Iterable[int]) -> TaskScores:
    """Documents differ by 0.3 nats a byte, models on one document by 0.02."""
    documents = []
    for number in ids:
        hard = random.Random(f"{task}-{number}").gauss(-1.2, 0.3)
        own = random.Random(f"{seed}-{task}-{number}").gauss(mean, 0.02)
        documents.append(
            DocumentScore(number, f"d{number}", f"p{number}", 99 * (hard + own), hard + own)
        )
    return TaskScores({}, tuple(documents), TERMS)


def model_scores(
    seed: int, new: float = 0.0, old: float = 0.0, ids: Iterable[int] = range(POOL)
) -> dict[str, TaskScores]:
    """A model that is better by so many nats a byte on tonight's rows and on old text."""
    means = zip(TASKS, (new, old), strict=True)
    return {task: task_scores(task, seed, mean, ids) for task, mean in means}
