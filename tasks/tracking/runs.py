"""The runs of a night: one for the flow run, and nested in it one for each stage, cached or not."""

import getpass
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from requant.errors import ConfigError, TransientError
from requant.notes import Crumb, NightLine, flat, night_note, stage_note
from requant.report import headline
from requant.store import StageRecord, Store
from tasks.tracking.connection import TrackingRun, page, preload, probe, reaching, transient
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
STAGE = "requant.stage"
HEADLINE = "requant.headline"


def open_parent(
    uri: str, experiment: str, flow_run_id: str, name: str, params: Mapping[str, Any]
) -> TrackingRun:
    """Open the run of a night: the one this flow run already has, else a new one.

    Args:
        uri: As `prepare_database` returns it.
        experiment: Name; made where missing.
        flow_run_id: What finds the run again after a SIGKILL or a retry.
        name: Of the run, for people.
        params: The configuration; nested sections become dotted names.

    Raises:
        TransientError: If a server does not answer.
        ConfigError: If the experiment was deleted.
    """
    preload()
    from mlflow import MlflowClient

    probe(uri)
    with transient(uri):
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment(client, uri, experiment)
        return _open(client, uri, experiment_id, flow_run_id, name=name, params=flat(params))


@reaching
def open_stage(
    parent: TrackingRun, stage: str, params: Mapping[str, Any] | None = None
) -> TrackingRun:
    """Open the nested run of a stage: the one an earlier attempt made, else a new one."""
    return _open(
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
    run.points.extend(
        Metric(key=_metric_name(name), value=float(value), timestamp=now, step=step)
        for name, value in values.items()
    )
    age = (now - run.points[0].timestamp) / 1000 if run.points else 0.0
    if age < FLUSH_SECONDS and len(run.points) < FLUSH_POINTS:
        return
    try:
        probe(run.uri)
        _flush(run)
    except TransientError:
        return


@reaching
def fail_stage(run: TrackingRun, error: BaseException) -> None:
    """End a stage's run as failed, with the error's text as its description."""
    _flush(run)
    text = f"{type(error).__name__}: {error}"
    run.client.set_tag(run.run_id, NOTE, f"**Failed.**\n\n```\n{text[:4000]}\n```")
    run.client.set_terminated(run.run_id, status="FAILED")


@reaching
def close_stage(
    run: TrackingRun,
    record: StageRecord,
    inputs: Mapping[str, StageRecord | None],
    *,
    store: Store,
    cached: bool,
) -> None:
    """Write down what a stage did and end its run. Repeating it adds nothing.

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
        for path in small_files(store.object_path(record.digest), record.kind):
            run.client.log_artifact(run.run_id, str(path))
    run.client.set_terminated(run.run_id, status="FINISHED")


@reaching
def close_parent(
    parent: TrackingRun,
    status: Status,
    lineage_html: str,
    report_html: str,
    metrics: Mapping[str, float],
) -> None:
    """End the run of a night with its pages; stages left running by a crash are ended as failed."""
    from mlflow.entities import Metric, RunTag

    children = sorted(
        parent.client.search_runs(
            [parent.experiment_id],
            f"tags.`mlflow.parentRunId` = '{parent.run_id}'",
            max_results=1000,
        ),
        key=lambda child: child.info.start_time,
    )
    for child in children:
        if child.info.status == "RUNNING":
            parent.client.set_terminated(child.info.run_id, status="FAILED")
    texts = {"lineage": lineage_html, "report": report_html}
    pages = {
        name: page(parent.experiment_id, "runs", f"{parent.run_id}/artifacts/{name}.html")
        for name, text in texts.items()
        if text
    }
    for name in pages:
        parent.client.log_text(parent.run_id, texts[name], f"{name}.html")
    lines = [_line(child) for child in children]
    crumbs = [crumb for child in children for crumb in _crumbs(child)]
    now = int(time.time() * 1000)
    parent.client.log_batch(
        parent.run_id,
        metrics=[Metric(_metric_name(name), value, now, 0) for name, value in metrics.items()],
        tags=[RunTag(NOTE, night_note(lines, status, crumbs, pages))],
    )
    parent.client.set_terminated(parent.run_id, status=status)


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

    params = {
        **flat(record.key_fields),
        "key": record.key,
        "digest": record.digest,
        "uri": store.ref(record.kind, record.digest).uri,
    }
    now = int(time.time() * 1000)
    metrics = [
        Metric(_metric_name(name), value, now, 0)
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
            RunTag("requant.cache", "hit" if cached else "miss"),
            RunTag("requant.digest", record.digest),
            RunTag(HEADLINE, headline(record)),
            RunTag(NOTE, note),
        ],
    )


def _line(child: "Run") -> NightLine:
    tags = child.data.tags
    ended = child.info.status == "FINISHED"
    done = "cached" if tags.get("requant.cache") == "hit" else "executed"
    return NightLine(
        stage=tags.get(STAGE, child.info.run_name),
        url=page(child.info.experiment_id, "runs", child.info.run_id),
        state=done if ended else "failed",
        digest=tags.get("requant.digest", ""),
        headline=tags.get(HEADLINE, ""),
    )


def _crumbs(child: "Run") -> list[Crumb]:
    tags = child.data.tags
    return [
        Crumb(
            tags[STAGE],
            tags["requant.digest"],
            page(child.info.experiment_id, "models", output.model_id),
        )
        for output in (child.outputs.model_outputs if child.outputs else [])
    ]


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:///"):
            folder = Path(uri.removeprefix("sqlite:///")).resolve().parent
            location = (folder / "mlartifacts" / quote(name, safe="")).as_uri()
        try:
            # The kind spares the reader the page's question what sort of experiment this is.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"tracking.experiment: {name!r} was deleted in MLflow; restore it there "
            f"(`mlflow experiments restore -x {found.experiment_id}`) or name another one"
        )
    return str(found.experiment_id)


def _open(
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
    from mlflow.entities import Param

    identity = {FLOW_RUN: flow_run_id, STAGE: stage or "night"}
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in identity.items())
    found: list[Run] = client.search_runs([experiment_id], query, max_results=1)
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        about = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "requant"}
        run = client.create_run(
            experiment_id, tags={**about, **identity, **(tags or {})}, run_name=name
        )
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    if new:
        client.log_batch(run.info.run_id, params=new)
    run_id = run.info.run_id
    return TrackingRun(client, uri, experiment_id, run_id, flow_run_id, stage, bool(found))


def _flush(run: TrackingRun) -> None:
    if run.points:
        with transient(run.uri):
            run.client.log_batch(run.run_id, metrics=list(run.points))
        run.points.clear()


def _metric_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in name)
