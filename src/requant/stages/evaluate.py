"""evaluate: lm-eval on every model of the night, and their paired comparison."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.config.sections import Evaluate
from requant.errors import ContractError
from requant.evaluation import TaskScores, local_tasks, paired, score_model, task_manager
from requant.rows import write_jsonl
from requant.stage import Metrics, Stage, StageContext

CHAIN = ("base", "adapted", "merged", "continued", "requantized")
"""adapted: the base an adapter was trained on, with the adapter beside its weights."""

Scores = Mapping[str, Mapping[str, TaskScores]]


def execute(
    section: Evaluate,
    context: StageContext,
    *,
    data: Path,
    adapter: Path | None = None,
    **models: Path,
) -> Metrics:
    """Write scores.json, paired.json and samples/<model>.<task>.jsonl into `context.out`.

    The generated tasks go through the model's chat template where it has one, as training did.

    Args:
        section: Which tasks, how many documents.
        context: Where to.
        data: Artifact of prepare_data.
        adapter: peft folder, for the role `adapted` alone.
        **models: Folders by role: any of `CHAIN`.

    Returns:
        `<model>/<task>/<metric>` -> value.

    Raises:
        ContractError: If no model is given, or one of an unknown role.
        ConfigError: If lm-eval does not know a task.
        ParityError: If a score is not finite.
    """
    unknown = sorted(models.keys() - set(CHAIN))
    if unknown or not models:
        raise ContractError(
            f"evaluate: got models {sorted(models)}; expected some of {', '.join(CHAIN)}"
        )
    work = context.work / "tasks"
    generated = local_tasks(data / "evaluation", work) if section.generated_tasks else []
    work.mkdir(parents=True, exist_ok=True)
    manager = task_manager(work, section.tasks)
    chain = [name for name in CHAIN if name in models]
    scores = {}
    for done, name in enumerate(chain, 1):
        beside = adapter if name == "adapted" else None
        scores[name] = _score(section, context, name, models[name], beside, generated, manager)
        context.reporter.message(f"{name}: {_headline(scores[name])}")
        context.reporter.progress(done, len(chain), "models")
    _write(context.out, scores)
    return {
        f"{model}/{task}/{metric}": estimate.value
        for model, tasks in scores.items()
        for task, result in tasks.items()
        for metric, estimate in result.metrics.items()
    }


def compare(scores: Scores) -> list[dict[str, Any]]:
    """Compare each model with the one before it in the chain, and the last with the first.

    Returns:
        For each pair and task: earlier, later, task, metric, higher_is_better and the fields of
        `requant.evaluation.Paired`.
    """
    chain = [name for name in CHAIN if name in scores]
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


def _score(
    section: Evaluate,
    context: StageContext,
    name: str,
    folder: Path,
    adapter: Path | None,
    generated: list[str],
    manager: Any,
) -> dict[str, TaskScores]:
    from requant.models import clear_memory, load_model, load_tokenizer, with_adapters

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
    (out / "scores.json").write_bytes(canonical_json(table))
    (out / "paired.json").write_bytes(canonical_json(compare(scores)))
    for model, tasks in scores.items():
        for task, result in tasks.items():
            if result.documents:
                rows = [asdict(document) for document in result.documents]
                write_jsonl(out / "samples" / f"{model}.{task}.jsonl", rows)


def _document_metric(result: TaskScores) -> str:
    main = str(result.main)
    return "log_likelihood" if main.endswith("perplexity") else main


def _headline(tasks: Mapping[str, TaskScores]) -> str:
    return ", ".join(
        f"{task} {metric} {estimate.value:.4g}"
        for task, result in tasks.items()
        for metric, estimate in list(result.metrics.items())[:1]
    )


STAGE = Stage(
    name="evaluate",
    version=2,
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
)
