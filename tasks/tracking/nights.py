"""The run of a night: opened before its stages, closed with its pages after them."""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from requant.canonical import digest_of
from requant.errors import ConfigError
from requant.names import TAG_CHARACTERS, tracking_key, tracking_value
from requant.report.notes import Crumb, NightLine, flat, night_note
from tasks.tracking.connection import SQLITE, TrackingRun, page, preload, probe, reaching, transient
from tasks.tracking.models import NOTE
from tasks.tracking.runs import CACHE, DIGEST, HEADLINE, STAGE, Status, open_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VERDICT = "verdict"
PLACE = "requant.place"
"""Tag of a night: digest of the machine, state folder and line it is of."""
BASE_PERPLEXITY, NIGHT_PERPLEXITY, SIZE = "ppl base", "ppl night", "size"
"""Short, for the width of a column, and in MLflow's order, which is the alphabet's."""

VIEW = "nights"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Where MLflow 3.17 keeps the state of a shared view of an experiment's runs. By itself it shows no
metric of any run as a column, and no run or experiment can ask it to."""


def nights_page(run: TrackingRun) -> str:
    """Address of the list of all nights with the figures that matter; see `run_page`."""
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    path = f"#/experiments/{run.experiment_id}/runs?{query}"
    return f"{run.pages}/{path}" if run.pages else path


def _view() -> str:
    columns = [
        "attributes.`Created`",
        *(f"metrics.`{name}`" for name in (BASE_PERPLEXITY, NIGHT_PERPLEXITY, SIZE)),
        f"tags.`{VERDICT}`",
    ]
    return json.dumps(
        {
            "searchFilter": "",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": columns,
            # Without these the page breaks.
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "groupsExpanded": {},
            "runListHidden": False,
        }
    )


def open_parent(
    uri: str,
    experiment: str,
    flow_run_id: str,
    name: str,
    params: Mapping[str, Any],
    pages: str | None = None,
) -> TrackingRun:
    """Open the run of a night: the one this flow run already has, else a new one.

    Args:
        uri: As `prepare_database` returns it.
        experiment: Name; made where missing.
        flow_run_id: What finds the run again after a SIGKILL or a retry.
        name: Of the run, for people.
        params: The configuration; nested sections become dotted names.
        pages: Address of a server that shows what `uri` holds, for links; None where `uri` is one.

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
        client.set_experiment_tag(experiment_id, VIEW_TAG, _view())
        run = open_run(client, uri, experiment_id, flow_run_id, name=name, params=flat(params))
    return replace(run, pages=pages.rstrip("/")) if pages else run


@reaching
def end_orphans(night: TrackingRun, line: str, state: Path) -> None:
    """End earlier nights of this machine's line that died without a word: they run for ever else.

    The caller holds the line, so that no other night of it is in progress. One that is retried
    opens its run again.

    Args:
        night: Tonight's; it gets the mark by which a later night knows it.
        line: Name of the model line.
        state: Its state folder: another one's nights may share the server.
    """
    from mlflow.entities import RunTag

    place = digest_of([socket.gethostname(), str(state), line])[:16]
    night.client.set_tag(night.run_id, PLACE, place)
    query = f"attributes.status = 'RUNNING' and tags.`{PLACE}` = '{place}'"
    for orphan in night.client.search_runs([night.experiment_id], query, max_results=1000):
        if orphan.info.run_id == night.run_id:
            continue
        said = (
            "**Killed.** Its process ended without a word: killed, or its machine went down. "
            "Run it again, and it goes on from what is valid."
        )
        tags = [RunTag(NOTE, said), RunTag(VERDICT, "killed")]
        for child in _children(night.client, night.experiment_id, orphan.info.run_id):
            if child.info.status == "RUNNING":
                night.client.set_terminated(child.info.run_id, status="KILLED")
        night.client.log_batch(orphan.info.run_id, tags=tags)
        night.client.set_terminated(orphan.info.run_id, status="KILLED")


def _children(client: "MlflowClient", experiment_id: str, run_id: str) -> "list[Run]":
    """Return the runs of a night's stages in the order they began."""
    found = client.search_runs(
        [experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=1000
    )
    return sorted(found, key=lambda child: child.info.start_time)


@reaching
def close_parent(
    parent: TrackingRun,
    status: Status,
    lineage_html: str,
    report_html: str,
    metrics: Mapping[str, float],
    failure: str = "",
    verdict: str = "",
    judged: str = "",
) -> None:
    """End the run of a night with its pages; stages left running end as failed, or killed with it.

    Args:
        parent: Of the night.
        status: How it ended.
        lineage_html: Page of the lineage.
        report_html: Page of the night.
        metrics: Of the evaluation, and the columns of the list of nights.
        failure: Cause and way out, for the top of the run's description.
        verdict: What came of the night, in two words.
        judged: The gate's verdict with its reasons, in Markdown.
    """
    from mlflow.entities import Metric, RunTag

    children = _children(parent.client, parent.experiment_id, parent.run_id)
    for child in children:
        if child.info.status == "RUNNING":
            ended = "KILLED" if status == "KILLED" else "FAILED"
            parent.client.set_terminated(child.info.run_id, status=ended)
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
    note = night_note(lines, status, crumbs, pages, failure, nights_page(parent), judged)
    now = int(time.time() * 1000)
    parent.client.log_batch(
        parent.run_id,
        metrics=[Metric(tracking_key(name), value, now, 0) for name, value in metrics.items()],
        tags=[RunTag(NOTE, tracking_value(note, TAG_CHARACTERS)), RunTag(VERDICT, verdict)],
    )
    parent.client.set_terminated(parent.run_id, status=status)


def _line(child: "Run") -> NightLine:
    tags = child.data.tags
    ended = child.info.status == "FINISHED"
    done = "cached" if tags.get(CACHE) == "hit" else "executed"
    return NightLine(
        stage=tags.get(STAGE, child.info.run_name),
        url=page(child.info.experiment_id, "runs", child.info.run_id),
        state=done if ended else "failed",
        digest=tags.get(DIGEST, ""),
        headline=tags.get(HEADLINE, ""),
    )


def _crumbs(child: "Run") -> list[Crumb]:
    tags = child.data.tags
    return [
        Crumb(
            tags[STAGE],
            tags[DIGEST],
            page(child.info.experiment_id, "models", output.model_id),
        )
        for output in (child.outputs.model_outputs if child.outputs else [])
    ]


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith(SQLITE):
            folder = Path(uri.removeprefix(SQLITE)).resolve().parent
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
