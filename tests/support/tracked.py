"""A night in MLflow, and how to look at it."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from requant.store import StageRecord, Store
from tasks import tracking
from tests.support.nights import CHAIN

ROOT = Path(__file__).parents[2]


def track(
    uri: str,
    store: Store,
    records: Mapping[str, StageRecord],
    flow_run: str,
    *,
    experiment: str = "requant",
    cached: bool = False,
) -> tracking.TrackingRun:
    parent = tracking.open_parent(uri, experiment, flow_run, "night", {"name": "tiny"})
    for stage, record in records.items():
        run = tracking.open_stage(parent, stage)
        for name, curve in {} if cached else record.curves.items():
            for step, value in curve:
                tracking.log_points(run, {name: value}, step)
        inputs = {role: records[source] for role, source in CHAIN[stage][1].items()}
        tracking.close_stage(run, record, inputs, store=store, cached=cached)
    tracking.close_parent(parent, "FINISHED", "<p>lineage</p>", "<p>report</p>", {"seconds": 1.0})
    return parent


def children(parent: tracking.TrackingRun) -> dict[str, Any]:
    query = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    found = parent.client.search_runs([parent.experiment_id], query)
    # A search leaves model inputs out.
    runs = [parent.client.get_run(run.info.run_id) for run in found]
    return {run.data.tags["requant.execution.stage"]: run for run in runs}


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
