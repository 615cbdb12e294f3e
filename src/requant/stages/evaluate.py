"""evaluate: lm-eval on every model of the night, and their paired comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from requant.canonical import canonical_json
from requant.config.evaluation import Evaluate
from requant.config.task_names import PAST_PERPLEXITY
from requant.data.artifact import EVALUATION
from requant.data.overlap import past_heldout
from requant.errors import ContractError
from requant.evaluation.answers import LIBRARIES
from requant.evaluation.artifact import CHAIN, MODELS, POOLS, WITH_ADAPTER, accuracy, new_skill
from requant.evaluation.blocks import Ids, Units, drawn, first_block
from requant.evaluation.examples import ask_examples, chosen_rows, write_examples
from requant.evaluation.lm_eval import local_tasks, manager_of
from requant.evaluation.loading import shared_loads
from requant.evaluation.looking import judged_scores
from requant.evaluation.night_verdict import CANDIDATE, references
from requant.evaluation.own_tasks import own_tasks
from requant.evaluation.results import compare, of_all_documents, write_results
from requant.evaluation.scores import TaskScores
from requant.evaluation.subject import ask, settle, subject
from requant.evaluation.survival import figures, in_words, survival
from requant.evaluation.tasks import answer_documents, write_perplexity_task
from requant.execution.past_nights import DATASETS, nights_ago
from requant.execution.stage import Metrics, Stage, StageContext
from requant.models.device import free_memory
from requant.models.headers import weight_files
from requant.store import describe


def execute(
    section: Evaluate,
    context: StageContext,
    *,
    data: Path,
    adapter: Path | None = None,
    **inputs: Path,
) -> Metrics:
    """Write scores.json, paired.json, examples.json and samples/<model>.<task>.parquet.

    The generated tasks go through the model's chat template where it has one, as training did.

    Args:
        section: Which tasks, how many documents.
        context: Where to.
        data: Artifact of prepare_data.
        adapter: peft folder, for the roles `adapted` and `base_adapted`.
        **inputs: Folders by role: models, any of `MODELS`; `past_data_<n>`, the dataset artifact of
            an earlier night, 1 being last night's.

    Returns:
        `<model>/<task>/<metric>` -> value; what each step changed, as
        `requant.evaluation.survival.figures`; past_rows and past_rows_trained_on (held-out rows of
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
    found: dict[str, list[list[int]]] = {}
    counts: Metrics = {}
    if section.generated_tasks:
        counts = _write_past(past, data, section.past_rows, context)
        for folder in (data / EVALUATION, context.work / "past"):
            found |= local_tasks(folder, work)
    manager = manager_of(section, work, section.tasks)
    order = drawn(found, context.seed, section.limit)
    pools = {task: len(units) for task, units in order.items()}
    first = first_block(order, section.first_documents)
    held = _held(models, section, order, context.device)
    load = shared_loads(context.device, [models[name] for name in held])
    subjects = {
        name: subject(
            name, models[name], adapter if name in WITH_ADAPTER else None, section, context, load
        )
        for name in MODELS
        if name in models
    }
    scores, said = {}, {}
    shown = chosen_rows(data, section.examples, context.seed)
    speakers = {"base", "champion", *[name for name in CHAIN if name in models][-1:]}
    for number, name in enumerate(_by_weights(models), 1):
        each = subjects[name]
        unit = f"requests of {name}, model {number} of {len(subjects)}"
        scores[name] = ask(each, section, context, manager, first, section.tasks, unit)
        if shown and name in speakers:
            said[name] = ask_examples(each.model, shown, section.example_tokens)
        settle(each, context, hold=name in held)
        context.reporter.message(f"{name}: {_headline(scores[name])}")
    scores = {name: scores[name] for name in subjects}
    if whole := of_all_documents(scores):
        context.reporter.message(
            f"not compared document by document, as no metric is a number for each: {whole}"
        )

    def more(name: str, documents: Ids) -> dict[str, TaskScores]:
        unit = f"requests of {name}, {sum(map(len, documents.values()))} more documents"
        found = ask(subjects[name], section, context, manager, documents, (), unit)
        settle(subjects[name], context, hold=name in held)
        return found

    judged = judged_scores(scores, section, order, more, context.reporter.message)
    (context.out / POOLS).write_bytes(canonical_json(pools))
    paired = compare(scores, context.reporter.message)
    write_results(context.out, scores, judged, paired)
    write_examples(context.out, shown, said)
    ledger = survival(paired)
    for line in in_words(ledger):
        context.reporter.message(line)
    return (
        counts
        | figures(ledger)
        | {
            f"{model}/{task}/{metric}": estimate.value
            for model, tasks in scores.items()
            for task, result in tasks.items()
            for metric, estimate in result.metrics.items()
        }
    )


def _by_weights(models: Mapping[str, Path]) -> list[str]:
    """Put models of the same weights one after the other, without the adapter first."""
    there = [name for name in MODELS if name in models]
    folders = list(dict.fromkeys(models[name] for name in there))
    return sorted(there, key=lambda name: (folders.index(models[name]), name in WITH_ADAPTER))


def _held(
    models: Mapping[str, Path], section: Evaluate, order: Units, device: str
) -> frozenset[str]:
    """Return the models that stay loaded: those of which more documents may be wanted, if they fit.

    Half of the free memory is left to what they compute. On a CPU 16-bit weights take twice their
    file's size.
    """
    judged = {CANDIDATE, *references(models, section.gate)} & models.keys()
    if all(sum(map(len, units)) <= section.first_documents for units in order.values()):
        return frozenset()
    files = [path for name in judged for path in weight_files(models[name])]
    needed = sum(path.stat().st_size for path in files) * (2 if device == "cpu" else 1)
    return frozenset(judged if needed <= free_memory(device) / 2 else ())


def _write_past(past: Sequence[Path], data: Path, limit: int, context: StageContext) -> Metrics:
    """Write the task of earlier nights' held-out rows, where there are any, and count them."""
    rows, left_out = past_heldout(past, data, limit)
    folder = context.work / "past"
    folder.mkdir(exist_ok=True)
    if rows:
        write_perplexity_task(folder, PAST_PERPLEXITY, answer_documents(rows))
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


def _headline(tasks: Mapping[str, TaskScores]) -> str:
    return ", ".join(
        f"{task} {metric} {estimate.value:.4g}"
        for task, result in tasks.items()
        for metric, estimate in list(result.metrics.items())[:1]
    )


def content_digests(section: Evaluate) -> dict[str, str]:
    """Return the digest of the user's own task files.

    Raises:
        ConfigError: If they cannot be used.
    """
    if section.task_folder is None:
        return {}
    own_tasks(section.task_folder, code=section.task_code)
    return {"task_folder": describe(section.task_folder).digest}


STAGE = Stage(
    name="evaluate",
    version=8,
    kind="evaluation",
    libraries=(*LIBRARIES, "datasets", "scipy"),
    execute=execute,
    content_digests=content_digests,
    artifact="evaluation",
    headline=(new_skill, accuracy),
    data_use="evaluation",
)
