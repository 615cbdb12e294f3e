"""The scores of one model on one task, one a document, from what lm-eval returns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from requant.errors import ParityError
from requant.evaluation.fine_scores import Kind, Sample, fine_scores, is_likelihood


@dataclass(frozen=True)
class DocumentScore:
    """How a model did on one document."""

    id: int
    document: str
    """sha256 of the document, as lm-eval takes it."""
    prompt: str
    """sha256 of what the model is given before its answer."""
    score: float
    """In the task's metric: log-likelihood in nats, or 0 and 1, or the task's own."""
    fine: float
    """As finely as can be: see `requant.evaluation.fine_scores`."""
    cluster: str = ""
    """What its document says it belongs to; empty for one that stands alone."""


@dataclass(frozen=True)
class Score:
    """A metric over all documents, with lm-eval's standard error where it has one."""

    value: float
    stderr: float | None
    higher_is_better: bool | None
    """As lm-eval says it of the task; None where it does not."""


@dataclass(frozen=True)
class Terms:
    """What two models' scores on a task must have in common to be compared."""

    version: str
    """The task's, as its file says."""
    metric: str
    kind: Kind
    """What the documents' fine scores are."""
    higher_is_better: bool
    """Direction of the documents' scores: that of log-likelihood, not of perplexity."""
    few_shot: int | None
    limit: int | None
    template: str | None
    """sha256 of the chat template the prompts went through; None where they went as they are."""
    harness: str


@dataclass(frozen=True)
class TaskScores:
    """All figures of one model on one task."""

    metrics: Mapping[str, Score]
    documents: tuple[DocumentScore, ...] = ()
    """One a document; none where `terms` is None."""
    terms: Terms | None = None
    """None for a group of tasks, and where every metric is of all documents at once, as BLEU is."""


@dataclass(frozen=True)
class Ran:
    """How lm-eval was run."""

    model: str
    few_shot: int | None
    limit: int | None
    template: str | None
    harness: str


def task_scores(
    ran: Ran, task: str, results: Mapping[str, Any], say: Callable[[str], None]
) -> TaskScores:
    """Take a task's scores out of what `lm_eval.simple_evaluate` returned.

    Args:
        ran: How it was run.
        task: A task or group among the results.
        results: With samples.
        say: Hears which figure is too large for a number.

    Raises:
        ParityError: If a score is not finite, naming model, task and document.
    """
    figures = dict(results["results"][task])
    for key in [key for key, value in figures.items() if _is_too_large(key, value)]:
        say(f"{ran.model} on {task}: {key.partition(',')[0]} is too large for a number: left out")
        del figures[key]
    directions = results["higher_is_better"].get(task, {})
    metrics = _metrics(ran.model, task, figures, directions)
    samples = results["samples"].get(task, [])
    # A task may answer the same documents through several filters; pairs need one of them.
    first = sorted(
        (sample for sample in samples if sample["filter"] == samples[0]["filter"]),
        key=lambda sample: int(sample["doc_id"]),
    )
    config = results["configs"].get(task, {})
    main = _main_metric(first, config)
    if main is None:
        return TaskScores(metrics)
    scores = [_document_score(ran.model, task, main, sample) for sample in first]
    kind, fine = fine_scores(main, first, scores)
    documents = tuple(
        DocumentScore(
            int(each["doc_id"]),
            each["doc_hash"],
            each["prompt_hash"],
            score,
            finer,
            _cluster(each["doc"]),
        )
        for each, score, finer in zip(first, scores, fine, strict=True)
    )
    terms = Terms(
        version=str(results["versions"].get(task)),
        metric="log_likelihood" if is_likelihood(main) else main,
        kind=kind,
        higher_is_better=is_likelihood(main) or bool(directions.get(main, True)),
        few_shot=ran.few_shot,
        limit=ran.limit,
        template=ran.template,
        harness=ran.harness,
    )
    return TaskScores(metrics, documents, terms)


def _is_too_large(key: str, value: Any) -> bool:
    return is_likelihood(key.partition(",")[0]) and value == math.inf


def _metrics(
    model: str, task: str, figures: Mapping[str, Any], higher_is_better: Mapping[str, bool]
) -> dict[str, Score]:
    scores = {}
    for key, value in sorted(figures.items()):
        metric, separator, result_filter = key.partition(",")
        if not separator or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise ParityError(
                f"evaluate: {model} on {task}: {metric} is {value}; the model's weights or its "
                "quantization are broken"
            )
        stderr = figures.get(f"{metric}_stderr,{result_filter}")
        name = metric if result_filter == "none" else f"{metric}_{result_filter}"
        # lm-eval writes "N/A" where it has none, NaN where there is one document.
        known = isinstance(stderr, (int, float)) and math.isfinite(stderr)
        scores[name] = Score(
            float(value), float(stderr or 0.0) if known else None, higher_is_better.get(metric)
        )
    return scores


def _main_metric(samples: Sequence[Sample], config: Mapping[str, Any]) -> str | None:
    """Choose the first metric the task names that is a number for each document; None without."""
    computed = [str(name) for name in samples[0]["metrics"]] if samples else []
    listed = [str(item["metric"]) for item in config.get("metric_list") or ()]
    # A task's own code may compute what its file does not list.
    for metric in dict.fromkeys([*(name for name in listed if name in computed), *computed]):
        if all(_number(metric, sample[metric]) is not None for sample in samples):
            return metric
    return None


def _number(metric: str, value: Any) -> float | None:
    """Return a document's score; None for what only all documents together make a score of."""
    if isinstance(value, (tuple, list)) and value and is_likelihood(metric):
        # Perplexities come as (log-likelihood, words).
        value = value[0]
    # numpy's scalars are no int or float of Python's.
    value = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
    return float(value) if isinstance(value, (int, float)) else None


def _cluster(document: Mapping[str, Any]) -> str:
    """Return what a document belongs to; where others of its file name one, it may hold null."""
    named = document.get("cluster")
    return "" if named is None else str(named)


def _document_score(model: str, task: str, metric: str, sample: Sample) -> float:
    score = _number(metric, sample[metric])
    assert score is not None  # as `_main_metric` chose it
    for number in [score, *_numbers(sample["filtered_resps"])]:
        if not math.isfinite(number):
            raise ParityError(
                f"evaluate: {model} on {task}, document {sample['doc_id']}: a score is {number}; "
                "the model's weights or its quantization are broken"
            )
    return score


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []
