"""evaluate: lm-eval on every model of the night, and their paired comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.config.evaluation import Evaluate
from requant.config.task_names import PAST_PERPLEXITY
from requant.data.artifact import EVALUATION, HELDOUT, TRAIN
from requant.data.formats import Row
from requant.data.overlap import normalised
from requant.data.rows import answer, write_jsonl
from requant.data.samples import read_rows
from requant.errors import ContractError
from requant.evaluation.artifact import MODELS, PAIRED, SAMPLES, SCORES, accuracy
from requant.evaluation.lm_eval import (
    TaskScores,
    is_likelihood,
    local_tasks,
    paired,
    score_model,
    task_manager,
)
from requant.evaluation.tasks import write_perplexity_task
from requant.execution.past_nights import DATASETS, nights_ago
from requant.execution.stage import Metrics, Stage, StageContext
from requant.names import file_name

Scores = Mapping[str, Mapping[str, TaskScores]]


def execute(
    section: Evaluate,
    context: StageContext,
    *,
    data: Path,
    adapter: Path | None = None,
    **inputs: Path,
) -> Metrics:
    """Write scores.json, paired.json and samples/<model>.<task>.jsonl into `context.out`.

    The generated tasks go through the model's chat template where it has one, as training did.

    Args:
        section: Which tasks, how many documents.
        context: Where to.
        data: Artifact of prepare_data.
        adapter: peft folder, for the role `adapted` alone.
        **inputs: Folders by role: models, any of `MODELS`; `past_data_<n>`, the dataset artifact of
            an earlier night, 1 being last night's.

    Returns:
        `<model>/<task>/<metric>` -> value; past_rows and past_rows_trained_on (held-out rows of
        earlier nights that were evaluated, and that were left out because tonight trains on them).

    Raises:
        ContractError: If no model is given, or one of an unknown role.
        ConfigError: If lm-eval does not know a task.
        ParityError: If a score is not finite.
    """
    past = [inputs[role] for role in sorted(inputs, key=_age) if _age(role)]
    models = {role: folder for role, folder in inputs.items() if not _age(role)}
    unknown = sorted(models.keys() - set(MODELS))
    if unknown or not models:
        raise ContractError(
            f"evaluate: got models {sorted(models)}; expected some of {', '.join(MODELS)}"
        )
    work = context.work / "tasks"
    work.mkdir(parents=True, exist_ok=True)
    generated: list[str] = []
    counts: Metrics = {}
    if section.generated_tasks:
        counts = _write_past(past, data, section.past_rows, context)
        folders = (data / EVALUATION, context.work / "past")
        generated = [task for folder in folders for task in local_tasks(folder, work)]
    manager = task_manager(work, section.tasks)
    chain = [name for name in MODELS if name in models]
    scores = {}
    for number, name in enumerate(chain, 1):
        adapter_used = adapter if name == "adapted" else None
        unit = f"requests of {name}, model {number} of {len(chain)}"
        scores[name] = _score(
            section, context, name, models[name], adapter_used, generated, manager, unit
        )
        context.reporter.message(f"{name}: {_headline(scores[name])}")
    if whole := _of_all_documents(scores):
        context.reporter.message(
            f"not compared document by document, as no metric is a number for each: {whole}"
        )
    _write(context.out, scores)
    return counts | {
        f"{model}/{task}/{metric}": estimate.value
        for model, tasks in scores.items()
        for task, result in tasks.items()
        for metric, estimate in result.metrics.items()
    }


def compare(scores: Scores) -> list[dict[str, Any]]:
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


def past_heldout(past: Sequence[Path], data: Path, limit: int) -> tuple[list[Row], list[Row]]:
    """Choose held-out rows of earlier nights, as many of each night as the limit allows.

    Args:
        past: Dataset artifacts, last night's first.
        data: Tonight's dataset artifact; what it holds out is evaluated already.
        limit: Rows at most.

    Returns:
        The rows, and those that tonight trains on: a model that has read the answers proves
        nothing.
    """
    trained = {normalised(row) for row in read_rows(data / TRAIN)}
    seen = {normalised(row) for row in read_rows(data / HELDOUT)}
    nights: list[list[Row]] = []
    left_out: list[Row] = []
    for folder in past:
        kept: list[Row] = []
        for row in read_rows(folder / HELDOUT):
            text = normalised(row)
            if text in seen:
                continue
            seen.add(text)
            (left_out if text in trained else kept).append(row)
        nights.append(kept)
    by_turns = [row for turn in zip_longest(*nights) for row in turn if row is not None]
    return by_turns[:limit], left_out


def _write_past(past: Sequence[Path], data: Path, limit: int, context: StageContext) -> Metrics:
    """Write the task of earlier nights' held-out rows, where there are any, and count them."""
    rows, left_out = past_heldout(past, data, limit)
    folder = context.work / "past"
    folder.mkdir(exist_ok=True)
    if rows:
        write_perplexity_task(folder, PAST_PERPLEXITY, [answer(row) for row in rows])
    if not past:
        return {}
    context.reporter.message(
        f"{PAST_PERPLEXITY}: {len(rows)} rows that {len(past)} earlier nights held out; "
        f"{len(left_out)} more are trained on tonight and left out"
    )
    return {"past_rows": float(len(rows)), "past_rows_trained_on": float(len(left_out))}


def _age(role: str) -> int:
    """Return how many nights ago a role's dataset was prepared; 0 for a model."""
    return nights_ago(DATASETS, role)


def _score(
    section: Evaluate,
    context: StageContext,
    name: str,
    folder: Path,
    adapter: Path | None,
    generated: list[str],
    manager: Any,
    unit: str,
) -> dict[str, TaskScores]:
    from requant.models.device import clear_memory
    from requant.models.load import load_model, with_adapters
    from requant.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, context.device)
    if adapter is not None:
        model = with_adapters(model, [(adapter, 1.0)])
    # Generated tasks have no few-shot examples to give: few_shot is for the tasks by name.
    runs = (
        (generated, 0, tokenizer.chat_template is not None),
        (list(section.tasks), section.few_shot, section.chat_template),
    )
    scores: dict[str, TaskScores] = {}
    for tasks, few_shot, chat_template in runs:
        if tasks:
            scores |= score_model(
                model,
                tokenizer,
                tasks,
                manager,
                name=name,
                batch_size=section.batch_size,
                few_shot=few_shot,
                limit=section.limit,
                chat_template=chat_template,
                seed=context.seed,
                tell=lambda done, total: context.reporter.progress(done, total, unit),
                say=context.reporter.message,
            )
    del model
    clear_memory()
    return scores


def _write(out: Path, scores: Scores) -> None:
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


def _document_metric(result: TaskScores) -> str:
    main = str(result.main)
    return "log_likelihood" if is_likelihood(main) else main


def _of_all_documents(scores: Scores) -> str:
    """List the tasks of which there are only figures over all documents, with their metrics."""
    tasks = {
        task: ", ".join(result.metrics)
        for found in scores.values()
        for task, result in found.items()
        if result.main is None
    }
    return "; ".join(f"{task} ({metrics})" for task, metrics in sorted(tasks.items()))


def _headline(tasks: Mapping[str, TaskScores]) -> str:
    return ", ".join(
        f"{task} {metric} {estimate.value:.4g}"
        for task, result in tasks.items()
        for metric, estimate in list(result.metrics.items())[:1]
    )


STAGE = Stage(
    name="evaluate",
    version=3,
    kind="evaluation",
    libraries=(
        "lm_eval",
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "scipy",
        "bitsandbytes",
        "gptqmodel",
        "optimum",
        "peft",
    ),
    execute=execute,
    artifact="evaluation",
    headline=(accuracy,),
    data_use="evaluation",
)
