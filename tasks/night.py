"""One night from opening to closing: keys, calls, the MLflow parent run, the report."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from requant.config import STAGE_NAMES, Config, StageName
from requant.errors import ConfigError, TransientError
from requant.lineage import lineage_html
from requant.models import resolve_device
from requant.report import StageRow, StageState, headline, night_report
from requant.stage import stage_key
from requant.stages.evaluate import CHAIN
from requant.store import StageRecord, Store, locked, touch_record
from requant.store.objects import write_durably
from tasks import tracking
from tasks.caching import StageResult
from tasks.policy import Night, StageTask, record_of, retrying, run_stage_task
from tasks.reporting import quiet_libraries


class SummaryRow(BaseModel):
    """One line of the table a person reads."""

    model_config = ConfigDict(frozen=True)

    stage: str
    state: StageState
    seconds: float | None
    """Of the execution that made the artifact, in this night or an earlier one."""
    digest: str | None
    headline: str


class NightSummary(BaseModel):
    """What came of a night, also of one that failed."""

    model_config = ConfigDict(frozen=True)

    rows: tuple[SummaryRow, ...]
    report: Path
    mlflow_uri: str
    mlflow_page: str
    """Of the night's run; to be put after a server's address where none is configured."""


class OpenNight:
    """Calls stages one after the other and remembers what came of each."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._rows: list[StageRow] = []

    def call(self, task: StageTask, **inputs: StageResult | None) -> StageResult | None:
        """Run one stage, or skip it where its section is off; see `flows.incremental_training`."""
        stage = task.stage
        config = self._night.config
        if not config.runs(stage.name):
            self._rows.append(StageRow(stage.name, "off"))
            return None
        given = {role: result for role, result in inputs.items() if result is not None}
        refs = {role: result.artifact for role, result in given.items()}
        try:
            section = getattr(config, stage.name)
            key = retrying(config)(stage_key, stage, section, refs, config.seed)
            result, state = run_stage_task(task, self._night, key, given)
            cached = state.name == "Cached"
            record = record_of(self._night.store, result)
            touch_record(self._night.store, record)
            if cached:
                retrying(config)(self._track_cached, record, given)
        except BaseException:
            self._rows.append(StageRow(stage.name, "failed"))
            raise
        self._rows.append(StageRow(stage.name, "cached" if cached else "done", record))
        return result

    def close(self, status: tracking.Status) -> NightSummary:
        """Write summary, report and lineage page, and end the MLflow parent run."""
        night = self._night
        records = [row.record for row in self._rows if row.record]
        title = str(flow_run.name)
        reached = {row.stage for row in self._rows}
        rows = [
            *self._rows,
            *(StageRow(stage, "not reached") for stage in STAGE_NAMES if stage not in reached),
        ]
        lineage = lineage_html(
            records,
            links=self._links(records),
            cached=[row.stage for row in rows if row.state == "cached"],
            title=title,
        )
        scores, paired = _evaluation(night.store, records)
        report = night_report(title, rows, scores, paired)
        path = night.store.report_path(night.parent.flow_run_id)
        summary = NightSummary(
            rows=tuple(_summary_row(row) for row in rows),
            report=path,
            mlflow_uri=night.parent.uri,
            mlflow_page=tracking.run_page(night.parent),
        )
        write_durably(path, report.encode())
        write_durably(path.with_name("lineage.html"), lineage.encode())
        write_durably(path.with_name(SUMMARY_NAME), summary.model_dump_json(indent=2).encode())
        metrics = records[-1].metrics if records and records[-1].stage == "evaluate" else {}
        retrying(night.config)(
            tracking.close_parent, night.parent, status, lineage, report, metrics
        )
        return summary

    def _track_cached(self, record: StageRecord, inputs: Mapping[str, StageResult]) -> None:
        store = self._night.store
        parents = {role: record_of(store, given) for role, given in inputs.items()}
        run = tracking.open_stage(self._night.parent, record.stage)
        tracking.close_stage(run, record, parents, store=store, cached=True)

    def _links(self, records: list[StageRecord]) -> dict[str, str]:
        try:
            return tracking.model_links(self._night.parent, [item.digest for item in records])
        except TransientError:
            # The pages must be written, with links or without.
            return {}


SUMMARY_NAME = "summary.json"


def night_name() -> str:
    """Name a flow run after its model line and the minute it starts, in UTC."""
    config = Config.model_validate(flow_run.parameters["config"])
    return f"{config.name} {datetime.now(UTC):%Y-%m-%d %H:%M}"


@contextmanager
def night_of(config: Config, force: list[StageName]) -> Iterator[OpenNight]:
    """Open a night in the current flow run and close it whatever happens inside.

    Raises:
        ConfigError: If `force` names a stage that the configuration switches off, or there is no
            GPU although the configuration asks for one.
    """
    for stage in force:
        if not config.runs(stage):
            raise ConfigError(f"force: {stage} is switched off by {stage}.enabled=false")
    if config.runtime.device == "cuda":
        # A GPU that is not there must be known before the first stage; auto and cpu always are.
        resolve_device(config.runtime.device)
    store = Store(config.state.resolve())
    quiet_libraries()
    uri = tracking.prepare_database(config.tracking.uri, store.root)
    parent = retrying(config)(
        tracking.open_parent,
        uri,
        config.tracking.experiment,
        flow_run_id=str(flow_run.id),
        name=str(flow_run.name),
        # An address of a server may hold a password.
        params=config.model_dump(mode="json", exclude={"tracking"}),
    )
    opened = OpenNight(Night(config, store, frozenset(force), parent, time.time()))
    # Between stages too nobody may collect what the next one reads.
    with locked(store.use_lock, shared=True):
        try:
            yield opened
        except BaseException as error:
            get_run_logger().error("%s", str(error) or type(error).__name__)
            try:
                opened.close("FAILED" if isinstance(error, Exception) else "KILLED")
            except Exception as second:
                # The stage's own error is the one to act on.
                get_run_logger().warning("the night could not be closed: %s", second)
            raise
        opened.close("FINISHED")


def read_summary(config: Config, run_id: object) -> NightSummary | None:
    """Return what a flow run left, also when it failed; None where it never opened its night."""
    report = Store(config.state.resolve()).report_path(str(run_id))
    path = report.with_name(SUMMARY_NAME)
    return NightSummary.model_validate_json(path.read_bytes()) if path.exists() else None


def _summary_row(row: StageRow) -> SummaryRow:
    record = row.record
    return SummaryRow(
        stage=row.stage,
        state=row.state,
        seconds=record.seconds if record else None,
        digest=record.digest if record else None,
        headline=headline(record) if record else "",
    )


def _evaluation(store: Store, records: list[StageRecord]) -> tuple[Any, Any]:
    folders = [store.object_path(item.digest) for item in records if item.stage == "evaluate"]
    if not folders:
        return None, ()
    scores, paired = (
        json.loads((folders[0] / name).read_text()) for name in ("scores.json", "paired.json")
    )
    # The file is canonical JSON, sorted by name; a reader follows the chain.
    return {model: scores[model] for model in CHAIN if model in scores}, paired
