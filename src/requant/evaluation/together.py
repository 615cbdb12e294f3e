"""Two models that were asked the same documents: by a night's evaluation, or now."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from requant.config.evaluation import Evaluate
from requant.data.artifact import EVALUATION
from requant.errors import ArtifactError, ConfigError
from requant.evaluation.artifact import MODELS, WITH_ADAPTER
from requant.evaluation.blocks import drawn
from requant.evaluation.evaluated import evaluations
from requant.evaluation.lm_eval import local_tasks, manager_of
from requant.evaluation.loading import shared_loads
from requant.evaluation.samples import write_model
from requant.evaluation.subject import ask, settle, subject
from requant.execution.stage import StageContext
from requant.models.config import read_model_config
from requant.models.tokenizer import chat_template
from requant.store import (
    StageRecord,
    Store,
    describe,
    find_object,
    holds,
    materialise,
    starts_digest,
    verify,
    verify_to_serve,
)

CANDIDATE, REFERENCE = "candidate", "reference"


@dataclass(frozen=True)
class Side:
    """A model that a person names."""

    given: str
    folder: Path
    digest: str | None
    """Digest of its files; None where links or special files are among them."""


@dataclass(frozen=True)
class Together:
    """Samples of two models on the same documents, and what the models are called there."""

    folder: Path
    """`samples/<model>.<task>.parquet`, as in an evaluation artifact."""
    candidate: str
    reference: str
    asked_by: str
    """Evaluation or dataset whose documents these are, in words."""


def find_side(store: Store, given: str) -> Side:
    """Find a model by its folder, or by the start of its digest.

    Args:
        store: Where digests are looked up.
        given: What a person typed.

    Raises:
        ConfigError: If it is neither.
        ArtifactError: If it is a folder and no model, or the start of no digest.
    """
    folder = Path(given)
    if not folder.is_dir():
        if not starts_digest(given):
            raise ConfigError(
                f"{given}: is no folder, and no start of a digest; give a model folder, or at "
                "least 4 hex digits as `requant status CONFIG` prints them"
            )
        folder = find_object(store, given)
        return Side(given, folder, folder.name)
    read_model_config(folder)
    try:
        return Side(given, folder, describe(folder).digest)
    except ArtifactError:
        # A snapshot of the hub's cache is links; no evaluation is of one.
        return Side(given, folder, None)


def evaluated_together(store: Store, candidate: Side, reference: Side) -> Together | None:
    """Return the newest evaluation that has scored two models; None where none has.

    Args:
        store: Where they lie.
        candidate: One.
        reference: The other.

    Raises:
        ArtifactError: If a byte of the evaluation is wrong.
        ConfigError: If the two are one.
    """
    if candidate.digest == reference.digest and candidate.digest is not None:
        raise ConfigError(
            f"{candidate.given} and {reference.given}: are the same model; name another one"
        )
    for record in reversed(evaluations(store)):
        if not holds(store, record.digest):
            continue
        inputs = record.key_fields["inputs"]
        # What was evaluated under an adapter is not the model of that digest.
        alone = [role for role in reversed(MODELS) if role in inputs and role not in WITH_ADAPTER]
        roles = {inputs[role]: role for role in alone}
        if candidate.digest in roles and reference.digest in roles:
            verify(store, store.ref("evaluation", record.digest))
            folder = materialise(store, record.digest)
            by = f"evaluation {record.digest[:12]}"
            return Together(folder, roles[candidate.digest], roles[reference.digest], by)
    return None


def questions_of(store: Store, sides: Sequence[Side]) -> StageRecord:
    """Return the evaluation whose documents are asked: the newest that scored one of some models.

    Args:
        store: Where evaluations are recorded.
        sides: The models; where none of them was scored, the newest of all is taken.

    Raises:
        ConfigError: If there is none with its dataset.
    """
    found = [
        each
        for each in reversed(evaluations(store))
        if holds(store, each.key_fields["inputs"]["data"])
    ]
    if not found:
        raise ConfigError(
            f"{store.root}: holds no evaluation with its dataset, of which documents could be "
            "asked; run a night there, or name another folder by --state"
        )
    known = {side.digest for side in sides}
    return max(found, key=lambda each: not known.isdisjoint(each.key_fields["inputs"].values()))


def ask_both(
    candidate: Side,
    reference: Side,
    evaluation: StageRecord,
    context: StageContext,
    tasks: Collection[str] = (),
) -> Together:
    """Ask two models every document of the tasks that a night generated.

    Args:
        candidate: One.
        reference: The other.
        evaluation: From `questions_of`; the documents are asked by its terms.
        context: `out` gets the samples.
        tasks: Those that are asked; empty: all.

    Raises:
        ConfigError: If a task is none of them, or the models' chat templates differ.
        ArtifactError: If a byte of the dataset, or of a model of the store, is wrong.
        ParityError: If a score is not finite.
    """
    store = context.store
    assert store is not None
    for side in (candidate, reference):
        if side.digest is not None and holds(store, side.digest):
            verify_to_serve(store, store.ref("model", side.digest))
    dataset = evaluation.key_fields["inputs"]["data"]
    verify(store, store.ref("dataset", dataset))
    data = materialise(store, dataset)
    section = Evaluate(limit=evaluation.key_fields["config"]["limit"])
    work = context.work / "tasks"
    found = local_tasks(data / EVALUATION, work)
    if unknown := sorted(set(tasks) - found.keys()):
        raise ConfigError(
            f"--task {unknown[0]}: is not asked of models that no night evaluated together; those "
            f"that are: {', '.join(found)}"
        )
    templates = {chat_template(side.folder) for side in (candidate, reference)}
    if len(templates) > 1:
        raise ConfigError(
            f"{candidate.given} and {reference.given}: have different chat templates, so they "
            "would not be asked the same; give both the same chat_template.jinja"
        )
    asked = {task: units for task, units in found.items() if not tasks or task in tasks}
    order = drawn(asked, context.seed, section.limit)
    documents = {task: sorted(id for unit in units for id in unit) for task, units in order.items()}
    manager = manager_of(section, work, ())
    load = shared_loads(context.device, ())
    for name, side in ((CANDIDATE, candidate), (REFERENCE, reference)):
        model = subject(name, side.folder, None, section, context, load)
        unit = f"requests of the {name}"
        write_model(context.out, name, ask(model, section, context, manager, documents, (), unit))
        settle(model, context, hold=False)
    return Together(context.out, CANDIDATE, REFERENCE, f"dataset {dataset[:12]}")
