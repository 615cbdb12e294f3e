"""One night from opening to closing: keys, calls, the MLflow parent run."""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from requant.config import Config, StageName
from requant.errors import ConfigError, RequantError
from requant.history import TAKES_PAST, lost_datasets, past_of
from requant.models import resolve_device
from requant.progress import done_line
from requant.report import StageRow, StageState, headline
from requant.stage import stage_key
from requant.store import StageRecord, Store, artifact_of, locked, touch_record
from requant.store.locks import acquire, whose
from tasks import tracking
from tasks.caching import StageResult
from tasks.listeners import outlook
from tasks.pages import night_figures, publish_artifacts, verdict, write_pages
from tasks.policy import Night, StageTask, record_of, retrying, run_stage_task
from tasks.preflight import refuse_problems
from tasks.promote import Promotion, paired_of, promote, register, standing
from tasks.reporting import quiet_libraries

LOOK_SECONDS = 1.0


class NightSkipped(RequantError):
    """The night must not run now; the text is the reason."""


class OpenNight:
    """Calls stages one after the other and remembers what came of each."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._rows: list[StageRow] = []
        self._promotion: Promotion | None = None
        self._notes: list[str] = []

    def call(self, task: StageTask, **inputs: StageResult | None) -> StageResult | None:
        """Run one stage, or skip it where its section is off; see `flows.incremental_training`."""
        stage = task.stage
        config = self._night.config
        if not config.runs(stage.name):
            self._rows.append(StageRow(stage.name, "off"))
            return None
        given = {role: result for role, result in inputs.items() if result is not None}
        refs = {role: result.artifact for role, result in given.items()}
        with self._blaming(stage.name):
            section = getattr(config, stage.name)
            key = retrying(config)(stage_key, stage, section, refs, config.seed)
            result, state = run_stage_task(task, self._night, key, given)
            cached = state.name == "Cached"
            record = record_of(self._night.store, result)
            touch_record(self._night.store, record)
            if cached:
                retrying(config)(self._track_cached, record, given)
        came: StageState = "cached" if cached else "done"
        self._rows.append(StageRow(stage.name, came, record))
        seconds = None if cached else record.seconds
        get_run_logger().info(done_line(stage.name, came, seconds, headline(record)))
        return result

    def past(self, tonight: StageResult | None) -> dict[str, StageResult]:
        """Find what past nights left that the configuration uses with tonight's."""
        if tonight is None or tonight.stage not in TAKES_PAST:
            return {}
        store, config = self._night.store, self._night.config
        with self._blaming(TAKES_PAST[tonight.stage]):
            record = record_of(store, tonight)
            found = past_of(store, record, config)
            if record.stage == "prepare_data" and config.evaluate.enabled:
                self._note(*_lost_nights(store, record, config.evaluate.past_nights))
        return {
            role: StageResult(
                stage=record.stage, key=record.key, artifact=artifact_of(store, record)
            )
            for role, record in found.items()
        }

    def promote(self) -> None:
        """Register the requantized model once it is evaluated, and promote it where that is on."""
        config = self._night.config
        records = {row.stage: row.record for row in self._rows if row.record}
        model, evaluation = records.get("requantize_gptq"), records.get("evaluate")
        if config.promote.enabled and model and evaluation:
            run = Task(_promote, name="promote", cache_policy=NO_CACHE, persist_result=False)
            with self._blaming("promote"):
                self._promotion = run(self._night, model, evaluation)
            self._note(*self._promotion.notes)

    def close(self, status: tracking.Status) -> None:
        """Write the pages, and end the MLflow parent run.

        What of it fails is said, and changes nothing of how the night ended: its model may be
        registered and serve by now.
        """
        night = self._night
        records = [row.record for row in self._rows if row.record]
        lineage = report = ""
        with _said("its pages in the state folder"):
            summary, lineage, report = write_pages(
                night, self._rows, self._promotion, str(flow_run.name), self._notes
            )
            with _said("its artifacts in Prefect"):
                publish_artifacts(night, summary, records)
        metrics = records[-1].metrics if records and records[-1].stage == "evaluate" else {}
        # Who cancels a night does not wait for a server that is away.
        attempt = (
            (lambda call, *words: call(*words)) if status == "KILLED" else retrying(night.config)
        )
        causes = [
            row.error if row.error.startswith(f"{row.stage}:") else f"{row.stage}: {row.error}"
            for row in self._rows
            if row.error
        ]
        if self._promotion and self._promotion.reason:
            causes.append(self._promotion.reason)
        with _said("its run in MLflow"):
            attempt(
                tracking.close_parent,
                night.parent,
                status,
                lineage,
                report,
                metrics | night_figures(records),
                "\n\n".join(causes),
                verdict(self._rows, self._promotion),
            )

    @contextmanager
    def _blaming(self, stage: str) -> Iterator[None]:
        """Keep for the pages which part of the night failed, and of what."""
        try:
            yield
        except BaseException as error:
            failed = isinstance(error, Exception)
            said = str(error) or type(error).__name__
            cause = said if failed else f"told to end ({said})"
            self._rows.append(StageRow(stage, "failed" if failed else "cancelled", error=cause))
            raise

    def _note(self, *texts: str) -> None:
        """Say what a person should know although nothing failed, in the log and in the report."""
        for text in texts:
            get_run_logger().warning(text)
        self._notes += texts

    def _track_cached(self, record: StageRecord, inputs: Mapping[str, StageResult]) -> None:
        store = self._night.store
        parents = {role: record_of(store, given) for role, given in inputs.items()}
        run = tracking.open_stage(self._night.parent, record.stage)
        tracking.close_stage(run, record, parents, store=store, cached=True)


def night_name() -> str:
    """Name a flow run after its model line and the minute it starts first, in UTC."""
    config = Config.model_validate(flow_run.parameters["config"])
    # Prefect counts a run that was never told of its end as no run.
    if re.fullmatch(rf"{re.escape(config.name)} [\d: -]+", str(flow_run.name)):
        return str(flow_run.name)
    return f"{config.name} {datetime.now(UTC):%Y-%m-%d %H:%M}"


@contextmanager
def night_of(config: Config, force: list[StageName]) -> Iterator[OpenNight]:
    """Open a night in the current flow run and close it whatever happens inside.

    Raises:
        NightSkipped: If another night of this model line is in progress, or this one is overdue.
        ConfigError: If `force` names a stage that the configuration switches off, or there is no
            GPU although the configuration asks for one.
    """
    for stage in force:
        if not config.runs(stage):
            raise ConfigError(f"force: {stage} is switched off by {stage}.enabled=false")
    if config.runtime.device == "cuda":
        # A GPU that is not there must be known before the first stage; auto and cpu always are.
        resolve_device(config.runtime.device)
    _refuse_late(config)
    store = Store(config.state.resolve())
    with _alone(config, store):
        quiet_libraries()
        retrying(config)(refuse_problems, config)
        uri = retrying(config)(tracking.prepare_database, config.tracking.uri, store.root)
        parent = retrying(config)(
            tracking.open_parent,
            uri,
            config.tracking.experiment,
            flow_run_id=str(flow_run.id),
            name=str(flow_run.name),
            # An address of a server may hold a password.
            params=config.model_dump(mode="json", exclude={"tracking"}),
            pages=config.tracking.pages,
        )
        opened = OpenNight(Night(config, store, frozenset(force), parent, _first_start()))
        # Between stages too nobody may collect what the next one reads.
        with locked(store.use_lock, shared=True, say=get_run_logger().info):
            try:
                yield opened
            except BaseException as error:
                get_run_logger().error("%s", str(error) or type(error).__name__)
                failed = isinstance(error, Exception)
                when = "when the cause is mended" if failed else "to go on with it"
                get_run_logger().error("%s: %s", when, way_on())
                opened.close("FAILED" if failed else "KILLED")
                raise
            opened.close("FINISHED")


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Turn an error into a line of the log: the work is done, a page of it is missing."""
    try:
        yield
    except Exception as error:
        get_run_logger().error(
            "the night is what it was, but %s could not be written (%s: %s); run it again to "
            "write them, its stages are cached",
            what,
            type(error).__name__,
            error,
        )


def way_on() -> str:
    """Say what goes on from where the current flow run stopped."""
    if _of_deployment():
        return (
            f"`prefect flow-run retry {flow_run.id}`, the Retry button "
            "or the next night goes on from what is valid"
        )
    return (
        "`requant run` with this configuration goes on from what is valid. Prefect cannot retry "
        "this flow run: it is of no deployment"
    )


def _of_deployment() -> bool:
    """Tell whether a worker runs this, without asking a server that may be gone."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


@contextmanager
def _alone(config: Config, store: Store) -> Iterator[None]:
    """Hold the model line: two nights of it would train on the same night's data twice."""
    path = store.night_lock(config.name)
    what = f"the night {flow_run.name!r}"
    # A look at the lock holds it for an instant: that is not a night.
    descriptor = acquire(path, timeout=LOOK_SECONDS, what=what)
    if descriptor is None:
        raise NightSkipped(
            f"another night of {config.name} is in progress in {store.root}: {whose(path)}; this "
            "one is skipped. Run it again when that has ended: it goes on from what is valid"
        )
    try:
        yield
    finally:
        os.close(descriptor)


def _refuse_late(config: Config) -> None:
    limit = config.runtime.max_late_minutes
    due = flow_run.scheduled_start_time
    if limit is None or due is None or flow_run.run_count > 1:
        return
    late = (datetime.now(UTC) - due).total_seconds() / 60
    if late > limit:
        raise NightSkipped(
            f"this night was due at {due:%Y-%m-%d %H:%M} UTC, {late:.0f} minutes ago: later than "
            f"runtime.max_late_minutes={limit:g}; it is skipped, the next one takes its place"
        )


def _first_start() -> float:
    """Return when the flow run started first, in seconds since the epoch: a retry keeps it."""
    context = FlowRunContext.get()
    start = context.flow_run.start_time if context and context.flow_run else None
    return start.timestamp() if start else time.time()


def _lost_nights(store: Store, tonight: StageRecord, nights: int) -> list[str]:
    """Say which earlier nights' held-out rows cannot be evaluated any more."""
    lost = lost_datasets(store, tonight, nights)
    if not lost:
        return []
    digests = ", ".join(record.digest[:12] for record in lost)
    return [
        f"evaluate: the datasets of {len(lost)} earlier nights were deleted ({digests}); their "
        "held-out rows are not evaluated"
    ]


def _promote(night: Night, model: StageRecord, evaluation: StageRecord) -> Promotion:
    config = night.config
    version = retrying(config)(register, config, night.parent, model, evaluation)
    if not config.promote.auto:
        outcome = retrying(config)(standing, config, version)
        return Promotion(version, outcome, "", to_deploy=False)
    promotion = retrying(config)(promote, config, version, paired_of(night.store, evaluation))
    if promotion.to_deploy and _of_deployment():
        # `requant run` says it, or deploys by itself.
        get_run_logger().info(outlook(config.name))
    if promotion.reason:
        get_run_logger().warning(promotion.reason)
    return promotion
