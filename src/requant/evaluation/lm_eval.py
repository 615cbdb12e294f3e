"""Run lm-eval on a model, keep one score a document, and compare models document by document."""

import glob
import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.errors import ConfigError, ParityError
from requant.evaluation.lm_eval_model import (
    Tell,
    infinite_perplexities,
    watched_model,
    without_environment,
)
from requant.machine.library_noise import no_library_noise
from requant.statistics import Paired, paired_difference

BOOTSTRAP_ITERATIONS = 1000


@dataclass(frozen=True)
class DocumentScore:
    """How a model did on one document: log-likelihood in nats, or 0 and 1, or the task's own."""

    id: int
    score: float


@dataclass(frozen=True)
class Score:
    """A metric over all documents, with lm-eval's standard error where it has one."""

    value: float
    stderr: float | None
    higher_is_better: bool | None
    """As lm-eval says it of the task; None where it does not."""


@dataclass(frozen=True)
class TaskScores:
    """All figures of one model on one task."""

    metrics: Mapping[str, Score]
    documents: tuple[DocumentScore, ...]
    """Scores in `main`, one a document; empty where it is None."""
    main: str | None
    """The metric the documents are scored in; None for a group of tasks, and where every metric is
    of all documents at once, such as BLEU."""
    higher_is_better: bool
    """Direction of the documents' scores: that of log-likelihood, not of perplexity."""


def local_tasks(folder: Path, work: Path) -> list[str]:
    """Copy generated task files to `work` with absolute paths, as lm-eval needs them.

    Args:
        folder: `<task>.yaml` and `<task>.jsonl` files.
        work: Gets the copies; `datasets` keeps its cache there too.

    Returns:
        The tasks' names, sorted.
    """
    import yaml

    work.mkdir(parents=True, exist_ok=True)
    names = []
    for path in sorted(folder.glob("*.yaml")):
        task = yaml.safe_load(path.read_text())
        files = {
            # `datasets` takes a path for a pattern.
            split: glob.escape(str((folder / name).resolve()))
            for split, name in task["dataset_kwargs"]["data_files"].items()
        }
        task["dataset_kwargs"] = {"data_files": files, "cache_dir": str(work / "datasets")}
        (work / path.name).write_text(yaml.safe_dump(task, sort_keys=False))
        names.append(str(task["task"]))
    return names


def task_manager(work: Path, tasks: Sequence[str]) -> Any:
    """Index the copies in `work`, and lm-eval's own tasks only where some are named.

    Raises:
        ConfigError: If lm-eval has no task of a name.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(work), include_defaults=bool(tasks))
    # Patterns such as arc_* are for its command line alone.
    unknown = [task for task in tasks if task not in manager.task_index]
    if unknown:
        raise ConfigError(
            f"evaluate.tasks: lm-eval has no {', '.join(map(repr, unknown))}; "
            "`lm-eval ls tasks` prints the names"
        )
    return manager


def score_model(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    manager: Any,
    *,
    name: str,
    batch_size: int,
    few_shot: int | None,
    limit: int | None,
    chat_template: bool,
    seed: int,
    tell: Tell = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, TaskScores]:
    """Evaluate a model on tasks.

    Log-likelihoods are summed in float32 whatever the model computes in: a sum of hundreds of
    bfloat16 terms has two significant digits.

    Args:
        model: Causal LM in evaluation mode.
        tokenizer: Its tokenizer.
        tasks: Names `manager` knows.
        manager: From `task_manager`.
        name: Of the model, for the error's text.
        batch_size: Sequences per forward pass.
        few_shot: Examples in the prompt; None leaves it to the task.
        limit: Documents per task; None: all.
        chat_template: Render prompts through the tokenizer's chat template.
        seed: Of few-shot sampling and bootstrap.
        tell: Hears how many of lm-eval's requests are done.
        say: Hears what was cut, and which figure is too large for a number.

    Raises:
        ParityError: If a score is not finite, naming model, task and document.
    """
    from lm_eval import simple_evaluate

    # lm-eval's bars go to stderr whatever the log level.
    with (
        no_library_noise(),
        without_environment(),
        infinite_perplexities(),
        redirect_stderr(io.StringIO()),
    ):
        watched = watched_model(
            tell,
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype="float32",
        )
        results = simple_evaluate(
            watched,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=few_shot,
            limit=limit,
            log_samples=True,
            apply_chat_template=chat_template,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    assert results is not None  # only other ranks of a distributed run get None
    if watched.too_long:
        say(
            f"{name}: {watched.too_long} requests are longer than the model's "
            f"{watched.max_length} positions: their prompts lost tokens from the beginning, "
            f"{watched.cut_answers} answers from the end"
        )
    scores = {}
    for task in sorted(results["results"]):
        samples = results["samples"].get(task, [])
        figures = results["results"][task]
        for key in [key for key, value in figures.items() if _is_too_large(key, value)]:
            say(f"{name} on {task}: {key.partition(',')[0]} is too large for a number: left out")
            del figures[key]
        scores[task] = _task_scores(
            name, task, figures, samples, results["higher_is_better"].get(task, {})
        )
    return scores


def _is_too_large(key: str, value: Any) -> bool:
    return is_likelihood(key.partition(",")[0]) and value == math.inf


def paired(earlier: Sequence[DocumentScore], later: Sequence[DocumentScore]) -> Paired:
    """Compare two models on the documents both were scored on; see `paired_difference`.

    Raises:
        ParityError: If there is no such document.
    """
    before = {document.id: document.score for document in earlier}
    differences = [
        document.score - before[document.id] for document in later if document.id in before
    ]
    if not differences:
        raise ParityError("paired comparison: the two models share no document")
    return paired_difference(differences)


def _task_scores(
    model: str,
    task: str,
    figures: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    higher_is_better: Mapping[str, bool],
) -> TaskScores:
    # A task may answer the same documents through several filters; pairs need one of them.
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    main = _main_metric(first)
    documents = (
        []
        if main is None
        else sorted(
            (_document_score(model, task, main, sample) for sample in first),
            key=lambda document: document.id,
        )
    )
    return TaskScores(
        metrics=_scores(model, task, figures, higher_is_better),
        documents=tuple(documents),
        main=main,
        higher_is_better=main is not None
        and (is_likelihood(main) or bool(higher_is_better.get(main, True))),
    )


def _scores(
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


def is_likelihood(metric: str) -> bool:
    """Tell whether a metric's documents are scored in log-likelihood, which is better higher."""
    return metric.endswith("perplexity") or metric == "bits_per_byte"


def _main_metric(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """Choose acc, else the first metric that is a number for each document; None without one."""
    metrics = [str(name) for name in samples[0]["metrics"]] if samples else []
    for metric in sorted(metrics, key=lambda name: name != "acc"):
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


def _document_score(model: str, task: str, metric: str, sample: Mapping[str, Any]) -> DocumentScore:
    score = _number(metric, sample[metric])
    assert score is not None  # as `_main_metric` chose it
    for number in [score, *_numbers(sample["filtered_resps"])]:
        if not math.isfinite(number):
            raise ParityError(
                f"evaluate: {model} on {task}, document {sample['doc_id']}: a score is {number}; "
                "the model's weights or its quantization are broken"
            )
    return DocumentScore(id=int(sample["doc_id"]), score=score)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []
