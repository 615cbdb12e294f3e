"""The runs of stages, nested in the night's: opened, followed by curves, closed with edges."""

import getpass
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from requant.errors import TransientError
from requant.names import TAG_CHARACTERS, markdown_block, tracking_key, tracking_value
from requant.report.headline import headline
from requant.report.notes import flat, stage_note
from requant.store import StageRecord, Store, materialise
from tasks.tracking.connection import TrackingRun, page, probe, public, reaching, transient
from tasks.tracking.models import (
    MODEL_KINDS,
    NOTE,
    Models,
    crumb_of,
    dataset_input,
    ensure_models,
    scores_on_models,
    small_files,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

FLUSH_POINTS = 50
FLUSH_SECONDS = 1.0

FLOW_RUN = "requant.flow_run_id"
STAGE = "requant.execution.stage"
CACHE = "cache"
DIGEST = "requant.digest"
HEADLINE = "requant.headline"


@reaching
def open_stage(
    parent: TrackingRun, stage: str, params: Mapping[str, Any] | None = None
) -> TrackingRun:
    """Open the nested run of a stage: the one an earlier attempt made, else a new one."""
    return open_run(
        parent.client,
        parent.uri,
        parent.experiment_id,
        parent.flow_run_id,
        name=stage,
        params=flat(params or {}),
        stage=stage,
        tags={"mlflow.parentRunId": parent.run_id},
    )


def log_points(run: TrackingRun, values: Mapping[str, float], step: int) -> None:
    """Add points to the curves of a running stage; they are sent at most about once a second.

    A server that is away does not stop a training: the points wait for the next call, and
    `close_stage` is the one that insists.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    waiting = len(run.points)
    run.points.extend(
        Metric(key=tracking_key(name), value=float(value), timestamp=now, step=step)
        for name, value in values.items()
    )
    age = (now - run.points[0].timestamp) / 1000 if run.points else 0.0
    # Behind a server that is away the points grow: then one try for every FLUSH_POINTS of them.
    is_full = len(run.points) // FLUSH_POINTS > waiting // FLUSH_POINTS
    if not is_full and (age < FLUSH_SECONDS or waiting >= FLUSH_POINTS):
        return
    try:
        probe(run.uri)
        _flush(run)
    except TransientError:
        return


def fail_stage(run: TrackingRun, error: BaseException) -> None:
    """End a stage's run as failed, with the error's text as its description.

    A server that is away is let be: it must not hide the error. `close_parent` ends the run later.
    """
    text = f"{type(error).__name__}: {error}"
    try:
        probe(run.uri)
        _flush(run)
        with transient(run.uri):
            note = f"**Failed.**\n\n{markdown_block(tracking_value(text, TAG_CHARACTERS // 2))}"
            run.client.set_tag(run.run_id, NOTE, note)
            run.client.set_terminated(run.run_id, status="FAILED")
    except TransientError:
        return


@reaching
def close_stage(
    run: TrackingRun,
    record: StageRecord,
    inputs: Mapping[str, StageRecord | None],
    *,
    store: Store,
    cached: bool,
) -> None:
    """Write down what a stage did and end its run. Repeating it adds no edge and no model.

    Args:
        run: Of the stage.
        record: What the stage left behind.
        inputs: Role to the record of what was handed in; None where it is not known.
        store: Where the artifact lies.
        cached: Whether the work was already done.
    """
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    _flush(run)
    before = run.client.get_run(run.run_id)
    known = {role: item for role, item in inputs.items() if item is not None}
    models = ensure_models(run, [*known.values(), record], store)
    _write_figures(run, before, record, known, models=models, store=store, cached=cached)
    used = {item.model_id for item in (before.inputs.model_inputs if before.inputs else [])}
    made = {item.model_id for item in (before.outputs.model_outputs if before.outputs else [])}
    taken = {models[item.digest].model_id for item in known.values() if item.digest in models}
    run.client.log_inputs(
        run.run_id,
        datasets=[
            dataset_input(item, store, record.stage)
            for item in known.values()
            if item.kind == "dataset"
        ],
        models=[LoggedModelInput(model_id) for model_id in sorted(taken - used)],
    )
    output = models.get(record.digest)
    if output is not None and output.model_id not in made:
        run.client.log_outputs(run.run_id, [LoggedModelOutput(output.model_id, step=0)])
    if record.kind not in MODEL_KINDS and not cached:
        for path in small_files(materialise(store, record.digest), record.kind):
            run.client.log_artifact(run.run_id, str(path))
    run.client.set_terminated(run.run_id, status="FINISHED")


def _write_figures(
    run: TrackingRun,
    before: "Run",
    record: StageRecord,
    inputs: Mapping[str, StageRecord],
    *,
    models: Models,
    store: Store,
    cached: bool,
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    params = fit_params(
        {
            **flat(record.key_fields),
            "key": record.key,
            "digest": record.digest,
            "uri": store.ref(record.kind, record.digest).uri,
        }
    )
    now = int(time.time() * 1000)
    metrics = [
        Metric(tracking_key(name), value, now, 0)
        for name, value in {**record.metrics, "seconds": record.seconds}.items()
    ]
    executed_in = record.labels.get("mlflow_run_id", "")
    note = stage_note(
        record,
        {role: crumb_of(item, models) for role, item in inputs.items()},
        crumb_of(record, models),
        (page(run.experiment_id, "runs", executed_in) if executed_in else "") if cached else None,
    )
    run.client.log_batch(
        run.run_id,
        metrics=metrics + scores_on_models(record, inputs, models),
        params=[Param(key, text) for key, text in params.items() if key not in before.data.params],
        tags=[
            RunTag(CACHE, "hit" if cached else "miss"),
            RunTag(DIGEST, record.digest),
            RunTag(HEADLINE, headline(record)),
            RunTag(NOTE, tracking_value(note, TAG_CHARACTERS)),
        ],
    )


def open_run(
    client: "MlflowClient",
    uri: str,
    experiment_id: str,
    flow_run_id: str,
    *,
    name: str,
    params: Mapping[str, str],
    stage: str = "",
    tags: Mapping[str, str] | None = None,
) -> TrackingRun:
    """Find the run of a flow run's stage and set it running again, or make it."""
    from mlflow.entities import Param

    identity = {FLOW_RUN: flow_run_id, STAGE: stage or "night"}
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in identity.items())
    found: list[Run] = client.search_runs([experiment_id], query, max_results=1)
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        about = {"mlflow.user": _user(), "mlflow.source.name": "requant"}
        run = client.create_run(
            experiment_id, tags={**about, **identity, **(tags or {})}, run_name=name
        )
    fit = fit_params(params)
    new = [Param(key, value) for key, value in fit.items() if key not in run.data.params]
    if new:
        client.log_batch(run.info.run_id, params=new)
    run_id = run.info.run_id
    address = public(uri)
    return TrackingRun(
        client,
        address,
        pages=address if address.startswith("http") else "",
        experiment_id=experiment_id,
        run_id=run_id,
        flow_run_id=flow_run_id,
        stage=stage,
    )


def fit_params(params: Mapping[str, str]) -> dict[str, str]:
    """Make names and values of parameters that MLflow takes."""
    return {tracking_key(name): tracking_value(text) for name, text in params.items()}


def _flush(run: TrackingRun) -> None:
    if run.points:
        with transient(run.uri):
            run.client.log_batch(run.run_id, metrics=list(run.points))
        run.points.clear()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a number without a name.
        return str(os.getuid())
