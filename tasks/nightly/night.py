"""The stages of one night, called one after the other, and what came of each."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from requant.config.section import Section
from requant.config.task_names import GENERATED
from requant.evaluation.foresight import foreseen, last_spreads
from requant.execution.key import stage_key
from requant.execution.past_nights import PAST_USES, Use, lost_datasets, past_of
from requant.execution.progress import done_line
from requant.machine.withheld import withheld
from requant.preflight import refuse
from requant.preflight.calibration import prepared_problems
from requant.report.headline import headline
from requant.report.night import StageRow, StageState
from requant.store import StageRecord, Store, touch_record
from requant.store.results import StageResult, result_of
from tasks import tracking
from tasks.gatekeeping import advice
from tasks.nightly.artifacts import publish_artifacts
from tasks.nightly.pages import judged, night_figures, night_verdict, write_pages
from tasks.nightly.row_ledger import close_ledger, kept, note_taken
from tasks.nightly.way_on import of_deployment
from tasks.promote import Promotion, promote, register, serving_of, standing
from tasks.retry import retrying
from tasks.secrets import redactor_of
from tasks.servers.listeners import outlook
from tasks.stage_task import Night, StageTask, done_earlier, record_of, run_stage_task


class OpenNight:
    """Runs stages one after the other and remembers what came of each: a `Way` of the walk."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._redact = redactor_of(night.config)
        self._rows: list[StageRow] = []
        self._promotion: Promotion | None = None
        self._notes: list[str] = []
        self._kept: dict[str, float] = {}

    def off(self, stage: str) -> None:
        """Note a stage that is switched off."""
        self._rows.append(StageRow(stage, "off"))

    def take(
        self, task: StageTask, section: Section, inputs: Mapping[str, StageResult]
    ) -> StageResult:
        """Run one stage."""
        stage, config = task.stage, self._night.config
        refs = {role: result.artifact for role, result in inputs.items()}
        with self._blaming(stage.name):
            began = self._night.began
            key = retrying(config)(stage_key, stage, section, refs, config.seed, began)
            result, state = run_stage_task(task, self._night, key, inputs)
            record = record_of(self._night.store, result)
            touch_record(self._night.store, record)
            known = state.name == "Cached"
            if known:
                retrying(config)(self._track_cached, record, inputs)
        cached = known or done_earlier(self._night, record)
        came: StageState = "cached" if cached else "done"
        self._rows.append(StageRow(stage.name, came, record))
        seconds = None if cached else record.seconds
        get_run_logger().info(done_line(stage.name, came, seconds, headline(record)))
        note_taken(config, self._night.store, record)
        if stage.name == "prepare_data":
            for line in _foreseen(self._night, record):
                get_run_logger().info(line)
            self._refuse_uncalibrated(record)
        return result

    def past(self, use: Use, tonight: StageResult) -> dict[str, StageResult]:
        """Find what past nights left that the configuration uses with tonight's."""
        store, config = self._night.store, self._night.config
        with self._blaming(PAST_USES[use].taker):
            record = record_of(store, tonight)
            found = past_of(use, store, record, config)
            if use == "datasets" and config.evaluate.enabled:
                self._note(*_lost_nights(store, record, config.evaluate.past_nights))
        return {role: result_of(store, record) for role, record in found.items()}

    def promote(self) -> None:
        """Register the 4-bit model once it is evaluated, and promote it where that is on."""
        config = self._night.config
        records = {row.stage: row.record for row in self._rows if row.record}
        model, evaluation = records.get(config.ships), records.get("evaluate")
        if config.promote.enabled and model and evaluation:
            run = Task(_promote, name="promote", cache_policy=NO_CACHE, persist_result=False)
            with self._blaming("promote"):
                self._promotion = run(self._night, model, evaluation)
            self._note(*self._promotion.notes)

    def conclude(self) -> None:
        """Tell the data ledger what came of the rows that the night took."""
        config = self._night.config
        if config.collect_rows.enabled:
            records = {row.stage: row.record for row in self._rows if row.record}
            store = self._night.store
            close_ledger(config, store, records.get(config.ships), self._promotion)
            with _said("what its generation kept of earlier nights"):
                self._kept = kept(store, config.name)

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
                publish_artifacts(night, summary, records, judged(self._promotion))
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
                metrics | night_figures(records) | self._kept,
                "\n\n".join(causes),
                night_verdict(self._rows, self._promotion),
                judged(self._promotion),
            )

    @contextmanager
    def _blaming(self, stage: str) -> Iterator[None]:
        """Keep for the pages which part of the night failed, and of what."""
        try:
            yield
        except BaseException as error:
            failed = isinstance(error, Exception)
            said = self._redact(str(error)) or type(error).__name__
            cause = said if failed else f"told to end ({said})"
            self._rows.append(StageRow(stage, "failed" if failed else "cancelled", error=cause))
            raise

    def _note(self, *texts: str) -> None:
        """Say what a person should know although nothing failed, in the log and in the report."""
        for text in texts:
            get_run_logger().warning(text)
        self._notes += texts

    def _refuse_uncalibrated(self, data: StageRecord) -> None:
        """End a night before it trains what too little text would calibrate."""
        config = self._night.config
        (base,) = (row.record for row in self._rows if row.stage == "prepare_base" and row.record)
        problems = prepared_problems(config, base.digest, data.digest)
        if problems:
            with self._blaming(problems[0].field):
                refuse(problems)

    def _track_cached(self, record: StageRecord, inputs: Mapping[str, StageResult]) -> None:
        store = self._night.store
        parents = {role: record_of(store, given) for role, given in inputs.items()}
        run = tracking.open_stage(self._night.parent, record.stage)
        tracking.close_stage(run, record, parents, store=store, cached=True)


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


def _foreseen(night: Night, data: StageRecord) -> list[str]:
    """Say what the generated tasks will be able to show, by what the last evaluation spread."""
    section = night.config.evaluate
    if not (section.enabled and section.generated_tasks):
        return []
    metrics = data.metrics
    units = {
        task: min(int(metrics.get(f"{task}_units", 0)), section.limit or sys.maxsize)
        for task in GENERATED
    }
    grouped = [t for t in GENERATED if metrics.get(f"{t}_units") != metrics.get(f"{t}_documents")]
    spreads = last_spreads(night.store, night.config.name, section.gate, get_run_logger().warning)
    return foreseen(section.gate, units, spreads, "the last night", grouped)


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
    # What it raises is the task's state in Prefect, before the flow has it.
    with withheld(redactor_of(night.config)):
        return _promoted(night, model, evaluation)


def _promoted(night: Night, model: StageRecord, evaluation: StageRecord) -> Promotion:
    config = night.config
    version = retrying(config)(register, config, night.parent, model, evaluation)
    if not config.promote.auto:
        outcome = retrying(config)(standing, config, version)
        decision = advice(config, serving_of(config), evaluation)
        return Promotion(version, outcome, "", to_deploy=False, decision=decision)
    promotion = retrying(config)(promote, config, version, evaluation)
    if promotion.to_deploy and of_deployment():
        # `requant run` says it, or deploys by itself.
        get_run_logger().info(outlook(config.name))
    if promotion.reason:
        get_run_logger().warning(promotion.reason)
    return promotion
