"""LoggedModels: one per artifact digest, found before it is made, with a breadcrumb of links."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.evaluation.artifact import WITH_ADAPTER
from requant.models.folder import MERGE_NAME
from requant.names import tracking_key
from requant.report.lineage import causes_first, parents
from requant.report.notes import Crumb, model_note, with_led_to
from requant.stages import STAGES
from requant.store import StageRecord, Store, locked, materialise
from requant.store.manifest import MANIFEST_NAME
from tasks.tracking.connection import TrackingRun, page, reaching

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, LoggedModel, Metric

Models = dict[str, "LoggedModel"]
"""digest -> its LoggedModel"""

MODEL_KINDS = frozenset({"model", "adapter"})

MAX_DATASET_DIGEST = 36
MAX_UPLOAD_BYTES = 16 << 20
NOTE = "mlflow.note.content"


@reaching
def model_links(parent: TrackingRun, digests: Iterable[str]) -> dict[str, str]:
    """Return digest -> address of the model's page; empty without a server to serve it."""
    if not parent.pages:
        return {}
    found = find_models(parent, digests)
    return {digest: f"{parent.pages}/{model_page(model)}" for digest, model in found.items()}


def model_page(model: "LoggedModel") -> str:
    """Address of a model's page, relative to any other page of the same server."""
    return page(model.experiment_id, "models", model.model_id)


def find_models(run: TrackingRun, digests: Iterable[str]) -> Models:
    """Look LoggedModels up by the digest of their artifact, in one question."""
    from mlflow.entities import LoggedModelStatus

    wanted = sorted(set(digests))
    if not wanted:
        return {}
    names = ", ".join(f"'{digest}'" for digest in wanted)
    found = run.client.search_logged_models(
        [run.experiment_id], f"params.digest IN ({names})", max_results=2 * len(wanted)
    )
    # One that a crash left unfinished lacks its files: another is made in its place.
    return {
        model.params["digest"]: model for model in found if model.status == LoggedModelStatus.READY
    }


def ensure_models(run: TrackingRun, records: Iterable[StageRecord], store: Store) -> Models:
    """Find the LoggedModels of the models and adapters among the records, make the missing ones.

    Args:
        run: Of the stage that took or made them; it becomes the source run of the new ones.
        records: Causes first.
        store: Where the artifacts lie.
    """
    wanted = [record for record in records if record.kind in MODEL_KINDS]
    digests = [record.digest for record in wanted]
    models = find_models(run, digests)
    if models.keys() >= set(digests):
        return models
    # Two flow runs that publish the same bytes at once must not make two pages of them.
    with locked(store.lock_path("mlflow-models")):
        models |= find_models(run, digests)
        for record in wanted:
            if record.digest not in models:
                models[record.digest] = _make_model(run, record, store)
    return models


def crumb_of(record: StageRecord, models: Models) -> Crumb:
    """Name an artifact, with a link where it has a page."""
    model = models.get(record.digest)
    return Crumb(record.stage, record.digest, model_page(model) if model else None)


def scores_on_models(
    record: StageRecord, inputs: Mapping[str, StageRecord], models: Models
) -> list["Metric"]:
    """Turn an evaluation's scores into metrics of the models, so that their pages show them.

    `requantized/describe_choice/acc` becomes `describe_choice/acc` of the model in that role; the
    step is the model's place in the chain, so the run draws the score along the chain. A score the
    page already has is not repeated.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    chain = [role for role, item in inputs.items() if item.digest in models]
    result: list[Metric] = []
    for name, value in record.metrics.items():
        role, _, score = name.partition("/")
        if not score or role not in chain:
            continue
        # What it says is the adapter's doing; the model beside it has a role of its own.
        adapter = inputs.get("adapter") if role in WITH_ADAPTER else None
        owner = (adapter or inputs[role]).digest
        if owner not in models:
            continue
        model = models[owner]
        score = tracking_key(score if role != "base_adapted" else f"on_the_original/{score}")
        if any(old.key == score and old.value == value for old in model.metrics or ()):
            continue
        step = chain.index(role)
        result.append(Metric(score, value, now, step, model_id=model.model_id))
    return result


def dataset_input(record: StageRecord, store: Store, stage: str) -> "DatasetInput":
    """Describe a dataset artifact as an input of a stage's run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    context = STAGES[stage].data_use if stage in STAGES else "training"
    dataset = Dataset(
        name=record.stage,
        digest=record.digest[:MAX_DATASET_DIGEST],
        source_type="local",
        source=json.dumps({"uri": store.ref(record.kind, record.digest).uri}),
        profile=json.dumps(record.metrics),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def small_files(folder: Path, kind: str) -> list[Path]:
    """List what is worth a copy: manifest and texts, of an adapter all, never a model's weights."""
    names = {
        "model": (MANIFEST_NAME, "README.md", "config.json", MERGE_NAME),
        "dataset": (MANIFEST_NAME, "README.md"),
    }.get(kind, ("*",))
    files = [path for name in names for path in sorted(folder.glob(name)) if path.is_file()]
    return [path for path in files if path.stat().st_size <= MAX_UPLOAD_BYTES]


def _make_model(run: TrackingRun, record: StageRecord, store: Store) -> "LoggedModel":
    above = _models_above(run, record)
    crumbs = [
        Crumb(item.params["stage"], digest, model_page(item)) for digest, item in above.items()
    ]
    folder = materialise(store, record.digest)
    uri = store.ref(record.kind, record.digest).uri
    model = run.client.create_logged_model(
        run.experiment_id,
        name=f"{record.stage}-{record.digest[:12]}",
        source_run_id=run.run_id if run.stage == record.stage else None,
        model_type=record.kind,
        tags={NOTE: model_note(record, [*crumbs, Crumb(record.stage, record.digest, None)], uri)},
        params={
            "digest": record.digest,
            "kind": record.kind,
            "stage": record.stage,
            "uri": uri,
            "parents": json.dumps(parents(record)),
            "seed": str(record.key_fields.get("seed", "")),
        },
    )
    own = Crumb(record.stage, record.digest, model_page(model))
    for digest in parents(record).values():
        if digest in above:
            note = with_led_to(above[digest].tags.get(NOTE, ""), own)
            run.client.set_logged_model_tags(above[digest].model_id, {NOTE: note})
    for path in small_files(folder, record.kind):
        run.client.log_model_artifact(model.model_id, str(path))
    run.client.finalize_logged_model(model.model_id, "READY")
    return model


def _models_above(run: TrackingRun, record: StageRecord) -> Models:
    """Return the LoggedModels an artifact was made from, causes first, one query a generation."""
    above: Models = {}
    generation = set(parents(record).values())
    while found := find_models(run, generation - above.keys()):
        above |= found
        generation = {up for model in found.values() for up in _parents_of(model).values()}
    order = causes_first(
        record.digest,
        lambda item: (
            parents(record).values()
            if item == record.digest
            else _parents_of(above[item]).values()
            if item in above
            else ()
        ),
    )
    return {
        digest: above[digest] for digest in order if digest in above and digest != record.digest
    }


def _parents_of(model: "LoggedModel") -> dict[str, Any]:
    return dict(json.loads(model.params.get("parents", "{}")))
