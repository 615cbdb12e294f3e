"""evaluate: lm-eval on every model of the night, and their paired comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json
from requant.config.evaluation import Evaluate
from requant.config.task_names import PAST_PERPLEXITY
from requant.data.artifact import EVALUATION
from requant.data.overlap import past_heldout
from requant.data.rows import answer
from requant.errors import ContractError
from requant.evaluation.artifact import MODELS, POOLS, accuracy
from requant.evaluation.blocks import Ids, drawn, first_block
from requant.evaluation.lm_eval import local_tasks, score_model, task_manager
from requant.evaluation.looking import judged_scores
from requant.evaluation.results import of_all_documents, write_results
from requant.evaluation.scores import TaskScores
from requant.evaluation.tasks import write_perplexity_task
from requant.execution.past_nights import DATASETS, nights_ago
from requant.execution.stage import Metrics, Stage, StageContext


def execute(
    section: Evaluate,
    context: StageContext,
    *,
    data: Path,
    adapter: Path | None = None,
    **inputs: Path,
) -> Metrics:
    """Write scores.json, paired.json and samples/<model>.<task>.parquet into `context.out`.

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
    pools: dict[str, int] = {}
    counts: Metrics = {}
    if section.generated_tasks:
        counts = _write_past(past, data, section.past_rows, context)
        for folder in (data / EVALUATION, context.work / "past"):
            pools |= local_tasks(folder, work)
    manager = task_manager(work, section.tasks)
    order = drawn(pools, context.seed, section.limit)
    pools = {task: len(places) for task, places in order.items()}
    chain = [name for name in MODELS if name in models]
    first = first_block(order, section.first_documents)
    scores = {}
    for number, name in enumerate(chain, 1):
        adapter_used = adapter if name == "adapted" else None
        asked = _Asked(name, models[name], adapter_used, first, section.tasks)
        unit = f"requests of {name}, model {number} of {len(chain)}"
        scores[name] = _score(section, context, manager, asked, unit)
        context.reporter.message(f"{name}: {_headline(scores[name])}")
    if whole := of_all_documents(scores):
        context.reporter.message(
            f"not compared document by document, as no metric is a number for each: {whole}"
        )

    def more(name: str, documents: Ids) -> dict[str, TaskScores]:
        unit = f"requests of {name}, {sum(map(len, documents.values()))} more documents"
        asked = _Asked(name, models[name], None, documents, ())
        return _score(section, context, manager, asked, unit)

    judged = judged_scores(scores, section, order, more, context.reporter.message)
    (context.out / POOLS).write_bytes(canonical_json(pools))
    write_results(context.out, scores, judged, context.reporter.message)
    return counts | {
        f"{model}/{task}/{metric}": estimate.value
        for model, tasks in scores.items()
        for task, result in tasks.items()
        for metric, estimate in result.metrics.items()
    }


@dataclass(frozen=True)
class _Asked:
    """A model, and what it is asked."""

    name: str
    folder: Path
    adapter: Path | None
    documents: Ids
    """Documents of the generated tasks."""
    tasks: Sequence[str]
    """By name, whole."""


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
    section: Evaluate, context: StageContext, manager: Any, asked: _Asked, unit: str
) -> dict[str, TaskScores]:
    from requant.models.device import clear_memory
    from requant.models.load import load_model, with_adapters
    from requant.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(asked.folder)
    model = load_model(asked.folder, context.device)
    if asked.adapter is not None:
        model = with_adapters(model, [(asked.adapter, 1.0)])
    # Generated tasks have no few-shot examples to give: few_shot is for the tasks by name.
    runs = (
        (list(asked.documents), 0, tokenizer.chat_template is not None, asked.documents),
        (list(asked.tasks), section.few_shot, section.chat_template, None),
    )
    scores: dict[str, TaskScores] = {}
    for tasks, few_shot, chat_template, documents in runs:
        if tasks:
            scores |= score_model(
                model,
                tokenizer,
                tasks,
                manager,
                name=asked.name,
                batch_size=section.batch_size,
                few_shot=few_shot,
                limit=section.limit,
                documents=documents,
                chat_template=chat_template,
                seed=context.seed,
                tell=lambda done, total: context.reporter.progress(done, total, unit),
                say=context.reporter.message,
            )
    del model
    clear_memory()
    return scores


def _headline(tasks: Mapping[str, TaskScores]) -> str:
    return ", ".join(
        f"{task} {metric} {estimate.value:.4g}"
        for task, result in tasks.items()
        for metric, estimate in list(result.metrics.items())[:1]
    )


STAGE = Stage(
    name="evaluate",
    version=5,
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
