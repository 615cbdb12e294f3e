"""The gate's verdict on two models that were asked the same documents, from their samples alone."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from requant.config.task_names import NEW_SKILL
from requant.errors import ConfigError
from requant.evaluation.judging import Margins, question, spared
from requant.evaluation.samples import read_models
from requant.evaluation.scores import TaskScores
from requant.evaluation.together import Together
from requant.gate import Decision, decide
from requant.gate.rules import Role


def judge(
    together: Together, *, alpha: float, margins: Margins, tasks: Collection[str] = ()
) -> Decision:
    """Decide whether a candidate may take the place of a reference.

    Every task guards; those of the new skill are targets as well, or all where none is.

    Args:
        together: The two, and where their scores are.
        alpha: Chance of an error; see `requant.gate.decide`.
        margins: What a guard may lose.
        tasks: Those to judge by; empty: all that were scored document by document.

    Raises:
        ConfigError: If a model or task was not evaluated, with those that were.
        ParityError: If the two were not asked the same.
    """
    after = _scores(together.folder, together.candidate)
    before = _scores(together.folder, together.reference)
    known = sorted(after.keys() & before.keys())
    if unknown := sorted(set(tasks) - set(known)):
        raise ConfigError(
            f"--task {unknown[0]}: was not scored document by document of both models; those that "
            f"were: {', '.join(known) or 'none'}"
        )
    chosen = [task for task in known if not tasks or task in tasks]
    targets = [task for task in chosen if task in NEW_SKILL] or chosen
    asked: list[tuple[Role, str]] = [("guard", task) for task in chosen]
    asked += [("target", task) for task in targets]
    questions = [
        question(
            task,
            role,
            together.reference,
            _shared(before[task], after[task]),
            _shared(after[task], before[task]),
            margins,
            tails=task not in spared(chosen),
        )
        for role, task in asked
    ]
    return decide(questions, alpha)


def _shared(scores: TaskScores, others: TaskScores) -> TaskScores:
    """Keep the documents that both models were scored on: of those a night judged it has more."""
    known = {each.id for each in others.documents}
    return replace(scores, documents=tuple(each for each in scores.documents if each.id in known))


def _scores(evaluation: Path, model: str) -> dict[str, TaskScores]:
    models = read_models(evaluation)
    if model not in models:
        raise ConfigError(
            f"{model}: has no samples in {evaluation}; models that have: "
            f"{', '.join(models) or 'none; evaluate once more, with this version'}"
        )
    return models[model]
