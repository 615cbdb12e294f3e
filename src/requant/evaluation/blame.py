"""At which generation a score turned: bisection over the models of a line that are kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from requant.config import Config
from requant.data.artifact import EVALUATION
from requant.errors import ConfigError
from requant.evaluation.blocks import drawn, first_block
from requant.evaluation.evaluated import evaluated_nights
from requant.evaluation.lm_eval import local_tasks, manager_of
from requant.evaluation.loading import shared_loads
from requant.evaluation.pairs import joined, unit_means
from requant.evaluation.scores import TaskScores
from requant.evaluation.subject import ask, settle, subject
from requant.evaluation.tasks import answer_documents, write_perplexity_task
from requant.execution.stage import StageContext
from requant.ledger.document import rows_of
from requant.ledger.nights import ledger_of
from requant.statistics import Paired, paired_difference
from requant.store import Store, holds, materialise
from requant.store.lines import descent, read_line

ROW_TASK = "requant_row"


@dataclass(frozen=True)
class Kept:
    """A generation whose model can be asked."""

    night: int
    """0: the original, that the first night was trained from."""
    model: Path


@dataclass(frozen=True)
class Turn:
    """Where a score turned."""

    task: str
    documents: int
    asked: dict[int, float]
    """Night -> mean score, of the generations that were asked; higher is better."""
    whole: Paired
    """What changed from the first to the last generation."""
    before: int | None
    """Last night before the score turned; None where the whole is no clear change."""
    after: int | None
    step: Paired | None
    """What changed from `before` to `after`."""


def blame(config: Config, what: str, night: int | None, context: StageContext) -> Turn:
    """Find the two generations, one the parent of the other, between which a score turned.

    Of generations g0, ..., gT, each the child of the one before, i is found with score(i - 1) on
    g0's side of the middle between score(g0) and score(gT), and score(i) on gT's. At most
    log2(T) + 2 models are asked; what one of them answered before is not asked again.

    Args:
        config: Of the line.
        what: A task: generated, or of `evaluate.tasks`; or the number of a row of the ledger, of
            which the answer's likelihood is asked.
        night: Whose documents a generated task has; None: the newest night that was evaluated.
        context: `work` gets task files; `store` holds line, models and their answers.

    Raises:
        ConfigError: If there is no such task or row, or less than two generations are kept.
        ArtifactError: If the head of the line or a model cannot be believed.
    """
    assert context.store is not None
    generations = kept_generations(context.store, config.name)
    if len(generations) < 2:
        raise ConfigError(
            f"{config.name}: has no accepted night whose models are in the state folder beside the "
            "original; there is nothing to look between (requant nights CONFIG)"
        )
    task = _write_task(config, what, night, context)
    score = _asking(config, task, context)
    found: dict[int, TaskScores] = {}

    def of(index: int) -> TaskScores:
        if index not in found:
            found[index] = score(generations[index])
        return found[index]

    last = len(generations) - 1
    whole = _change(task, of(0), of(last))
    turned = whole.mean != 0 and not (whole.low is not None and whole.low <= 0 <= (whole.high or 0))
    at = turning_point(last, lambda index: _mean(of(index))) if turned else None
    return Turn(
        task=task,
        documents=len(of(0).documents),
        asked={generations[index].night: _mean(scores) for index, scores in sorted(found.items())},
        whole=whole,
        before=None if at is None else generations[at - 1].night,
        after=None if at is None else generations[at].night,
        step=None if at is None else _change(task, of(at - 1), of(at)),
    )


def in_words(turn: Turn) -> list[str]:
    """Say where a score turned, a line each."""
    asked = [f"{_named(night)}: {score:.4f}" for night, score in turn.asked.items()]
    count = turn.documents
    documents = f"mean of {count} documents" if count > 1 else "one document"
    lines = [f"{turn.task}, {documents}, higher is better", *asked]
    last = max(turn.asked)
    if turn.after is None or turn.before is None or turn.step is None:
        return [*lines, f"no clear change from the first to night {last}: {_interval(turn.whole)}"]
    return [
        *lines,
        f"turned at night {turn.after}: {_interval(turn.step)} against {_named(turn.before)}, of "
        f"{turn.whole.mean:+.4f} in all up to night {last}",
    ]


def turning_point(last: int, score: Callable[[int], float]) -> int:
    """Return an index i in 1 ... last at which a score passes the middle of its two ends.

    Args:
        last: Index of the last score; its first is 0.
        score: Index -> score; the ends differ.
    """
    low, high = 0, last
    middle = (score(0) + score(last)) / 2
    rises = score(last) > middle
    while high - low > 1:
        between = (low + high) // 2
        if (score(between) > middle) == rises:
            high = between
        else:
            low = between
    return high


def kept_generations(store: Store, name: str) -> list[Kept]:
    """Return the original, and the generations that led to the newest accepted one and are kept.

    Raises:
        ArtifactError: If the head of the line cannot be believed.
    """
    outcomes, evaluations = read_line(store, name).nights, evaluated_nights(store, name)
    path = descent(outcomes)
    models = [(night, outcomes[night].model) for night in path]
    inputs = [evaluations[night].key_fields["inputs"] for night in path if night in evaluations]
    original = next((each["base"] for each in inputs if "base" in each), None)
    return [
        Kept(night, materialise(store, model))
        for night, model in [(0, original), *models]
        if model and holds(store, model)
    ]


def _write_task(config: Config, what: str, night: int | None, context: StageContext) -> str:
    """Write the files of a generated task, or of a row's, into `context.work`; name the task."""
    folder = context.work / "asked"
    folder.mkdir(parents=True)
    if what.isdecimal():
        write_perplexity_task(folder, ROW_TASK, _row_documents(config, int(what), context))
        return ROW_TASK
    assert context.store is not None
    data = materialise(context.store, _evaluation(context.store, config.name, night)["data"])
    generated = sorted(path.stem for path in (data / EVALUATION).glob("*.yaml"))
    if what not in generated and what not in config.evaluate.tasks:
        named = ", ".join([*generated, *config.evaluate.tasks])
        raise ConfigError(
            f"{what!r}: is no task of this night, and no number of a row; tasks: {named}"
        )
    for path in (data / EVALUATION).glob(f"{what}.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return what


def _row_documents(config: Config, number: int, context: StageContext) -> list[dict[str, object]]:
    store = context.store
    assert store is not None
    ledger = ledger_of(store, read_line(store, config.name).ledger)
    rows = [row.row for _, row in rows_of(store, ledger, [number])] if number < ledger.rows else []
    documents = answer_documents([row for row in rows if row])
    if not documents:
        raise ConfigError(
            f"row {number}: the ledger of {config.name} has {ledger.rows} rows, numbered from 0, "
            "and this is none of them, or one without an answer (requant data show CONFIG held_out "
            "prints the numbers)"
        )
    return documents


def _evaluation(store: Store, name: str, night: int | None) -> dict[str, str]:
    """Return role -> digest of the inputs of a night's evaluation."""
    known = evaluated_nights(store, name)
    number = max(known, default=None) if night is None else night
    if number not in known:
        raise ConfigError(
            f"night {night}: was not evaluated; those that were: "
            f"{', '.join(map(str, known)) or 'none'}"
        )
    return dict(known[number].key_fields["inputs"])


def _asking(config: Config, task: str, context: StageContext) -> Callable[[Kept], TaskScores]:
    """Return what asks one generation the documents of the task."""
    section = config.evaluate
    work = context.work / "tasks"
    generated = local_tasks(context.work / "asked", work)
    order = drawn(generated, context.seed, section.limit)
    documents = first_block(order, section.first_documents)
    named = () if generated else (task,)
    manager = manager_of(section, work, named)
    load = shared_loads(context.device, [])

    def score(generation: Kept) -> TaskScores:
        name = f"night {generation.night}" if generation.night else "original"
        each = subject(name, generation.model, None, section, context, load)
        found = ask(each, section, context, manager, documents, named, f"requests of {name}")
        settle(each, context, hold=False)
        if task not in found:
            raise ConfigError(f"{task!r}: is a group of {', '.join(found)}; name one of them")
        return found[task]

    return score


def _change(task: str, before: TaskScores, after: TaskScores) -> Paired:
    """Compare two generations; documents of one group count once.

    Raises:
        ConfigError: If the task has no score for each document.
    """
    pairs = joined(task, before, after)
    if not pairs:
        raise ConfigError(
            f"{task!r}: is scored of all documents at once, so that generations cannot be compared "
            "document by document; name another task"
        )
    return paired_difference(unit_means(pairs, "fine"))


def _mean(scores: TaskScores) -> float:
    return sum(each.fine for each in scores.documents) / len(scores.documents)


def _named(night: int) -> str:
    return f"night {night}" if night else "original"


def _interval(change: Paired) -> str:
    if change.low is None:
        return f"{change.mean:+.4f}"
    return f"{change.mean:+.4f} (95 %: {change.low:+.4f} to {change.high:+.4f})"
