"""One model of an evaluation: who it is, and what it is asked."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.config.evaluation import Evaluate
from requant.evaluation.answering import answering_model
from requant.evaluation.answers import identity, recall, remember
from requant.evaluation.blocks import Ids
from requant.evaluation.lm_eval import score_model
from requant.evaluation.lm_eval_model import watched_model
from requant.evaluation.loading import Load
from requant.evaluation.scores import TaskScores
from requant.execution.stage import StageContext


@dataclass(frozen=True)
class Subject:
    """A model of the night."""

    name: str
    """Role of the model in the evaluation."""
    folder: Path
    adapter: Path | None
    model: Any
    """From `requant.evaluation.answering.answering_model`."""
    identity: dict[str, Any] | None
    """What its answers are kept under; None where they are not kept."""


def subject(
    name: str,
    folder: Path,
    adapter: Path | None,
    section: Evaluate,
    context: StageContext,
    load: Load,
) -> Subject:
    """Make a model that can be asked; it is loaded when the first answer is not known.

    Log-likelihoods are summed in float32 whatever the model computes in: a sum of hundreds of
    bfloat16 terms has two significant digits.

    Args:
        name: Its role.
        folder: Of its weights and tokenizer.
        adapter: peft folder beside its weights.
        section: Says how many sequences a forward pass takes.
        context: Of the stage.
        load: From `requant.evaluation.loading.shared_loads`.
    """
    from requant.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)

    def opened() -> Any:
        return watched_model(
            pretrained=load(folder, adapter),
            tokenizer=tokenizer,
            batch_size=section.batch_size,
            softmax_dtype="float32",
        )

    store = context.store
    who = identity(store, folder, adapter, context.device, context.seed) if store else None
    known = recall(store, who) if store and who and not context.forced else {}
    return Subject(name, folder, adapter, answering_model(tokenizer, known, opened), who)


def ask(
    subject: Subject,
    section: Evaluate,
    context: StageContext,
    manager: Any,
    documents: Ids,
    tasks: Sequence[str],
    unit: str,
) -> dict[str, TaskScores]:
    """Evaluate a model.

    Args:
        subject: The model.
        section: Says how it is asked.
        context: Of the stage.
        manager: From `requant.evaluation.lm_eval.manager_of`.
        documents: Of the generated tasks.
        tasks: By name, whole.
        unit: What is counted, for who watches.
    """
    model = subject.model
    # Generated tasks have no few-shot examples to give: few_shot is for the tasks by name.
    chat = model.tokenizer.chat_template is not None
    runs = (
        (list(documents), 0, chat, documents),
        (list(tasks), section.few_shot, section.chat_template, None),
    )
    before, known = model.asked, model.asked_before
    scores: dict[str, TaskScores] = {}
    for names, few_shot, chat_template, chosen in runs:
        if names:
            # Tasks made from the night's rows ask for what training showed.
            model.as_trained = chosen is not None
            scores |= score_model(
                model,
                names,
                manager,
                name=subject.name,
                few_shot=few_shot,
                limit=section.limit,
                documents=chosen,
                chat_template=chat_template,
                seed=context.seed,
                tell=lambda done, total: context.reporter.progress(done, total, unit),
                say=context.reporter.message,
            )
    if found := model.asked_before - known:
        context.reporter.message(
            f"{subject.name}: {found} of {model.asked - before} requests were answered before"
        )
    return scores


def settle(subject: Subject, context: StageContext, *, hold: bool) -> None:
    """Keep what a model answered for other nights, and give its memory back unless it is to stay.

    Args:
        subject: The model.
        context: Of the stage.
        hold: It may be asked again.
    """
    if context.store and subject.identity:
        # A full disk costs the next night time, not this one its figures.
        with suppress(OSError):
            remember(context.store, subject.identity, subject.model.learnt)
    if not hold:
        subject.model.close()
