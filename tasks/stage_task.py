"""How every stage becomes a Prefect task: cached by its key, retried only where that can help."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import Task, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run, task_run

from requant.config import Config, Section
from requant.errors import ArtifactError
from requant.execution.key import StageKey
from requant.execution.launcher import Launch, in_own_process
from requant.execution.perform import perform
from requant.execution.stage import Metrics, Stage, StageContext
from requant.machine.withheld import withheld
from requant.redaction import Redact
from requant.store import StageRecord, Store, read_record
from requant.store.results import StageResult, result_of
from tasks import tracking
from tasks.caching import ResultFolder, StageResultSerializer, cache_policy
from tasks.nightly.reporter import TaskReporter
from tasks.nightly.waiting import telling_of_slots
from tasks.retry import JITTER, MAX_DELAY_SECONDS, awaiting_server, may_retry
from tasks.secrets import redactor_of, variables_of

ACCELERATOR = "accelerator"
"""Tag of the tasks that fill a GPU, by which Prefect limits how many run at once."""


PROCESSOR = "processor"
"""Tag of the tasks that fill the cores."""


@dataclass(frozen=True)
class Night:
    """What all stages of one flow run share."""

    config: Config
    store: Store
    force: frozenset[str]
    parent: tracking.TrackingRun
    started: float
    """Seconds since the epoch."""
    began: str = ""
    """When the ledger's night began: of one that goes on, earlier; empty without a ledger."""


@dataclass(frozen=True)
class StageTask:
    """A stage and the body of its Prefect task."""

    stage: Stage
    body: Callable[..., StageResult]
    tags: tuple[str, ...]


def stage_task(stage: Stage, tags: Iterable[str] = (PROCESSOR,)) -> StageTask:
    """Make a stage's Prefect task; `tags` are what Prefect limits concurrency by."""

    def body(
        night: Night, section: Section, key: StageKey, inputs: Mapping[str, StageResult]
    ) -> StageResult:
        return _execute(stage, night, section, key, inputs)

    body.__doc__ = stage.execute.__doc__
    return StageTask(stage, body, tuple(tags))


def run_stage_task(
    task: StageTask, night: Night, key: StageKey, inputs: Mapping[str, StageResult]
) -> tuple[StageResult, State[Any]]:
    """Run a stage's task in the current flow run.

    Returns:
        The result and Prefect's final state, named `Cached` where the work was already done.

    Raises:
        Exception: What the stage raised in its last attempt.
    """
    runtime = night.config.runtime
    logger = get_run_logger()
    what = f"{task.stage.name} of {flow_run.name!r}"
    delays = [
        min(runtime.retry_seconds * 2**attempt, MAX_DELAY_SECONDS)
        for attempt in range(runtime.retries)
    ]
    prefect_task: Task[..., StageResult] = Task(
        task.body,
        name=task.stage.name,
        task_run_name=f"{task.stage.name}-{key.digest[:8]}",
        tags=task.tags,
        cache_policy=cache_policy(night.store, what, logger.info),
        persist_result=True,
        cache_result_in_memory=False,
        result_serializer=StageResultSerializer(),
        refresh_cache=task.stage.name in night.force,
        retries=runtime.retries,
        retry_delay_seconds=delays or None,
        retry_jitter_factor=JITTER,
        retry_condition_fn=may_retry,
    )
    # Given earlier, Prefect would want it saved on its server.
    prefect_task.result_storage = ResultFolder(basepath=str(night.store.results_path()))
    section = getattr(night.config, task.stage.name)
    with ExitStack() as waiting:
        for tag in task.tags:
            waiting.enter_context(telling_of_slots(tag, UUID(flow_run.id), logger.info))
        # What the stage raises comes as a state; an error is Prefect's own. Work that is done by
        # then is a hit.
        state = cast(
            State[Any],
            awaiting_server()(prefect_task, night, section, key, inputs, return_state=True),
        )
    return state.result(), state


def _done_tonight(night: Night, key: StageKey) -> bool:
    """Tell whether a forced stage has run already, and only its book-keeping is tried again."""
    record = read_record(night.store, key.digest)
    return record is not None and not done_earlier(night, record)


def done_earlier(night: Night, record: StageRecord) -> bool:
    """Tell whether work was done before a night began.

    Of a state folder that was moved Prefect knows no result; the stage finds its record.
    """
    return record.started < night.started


def record_of(store: Store, result: StageResult) -> StageRecord:
    """Return the record behind a result that was just made or verified.

    Raises:
        ArtifactError: If the record was deleted since.
    """
    record = read_record(store, result.key)
    if record is None:
        raise ArtifactError(f"{store.record_path(result.key)}: was deleted while the night ran")
    return record


def _execute(
    stage: Stage,
    night: Night,
    section: Section,
    key: StageKey,
    inputs: Mapping[str, StageResult],
) -> StageResult:
    from requant.models.device import resolve_device

    run = tracking.open_stage(night.parent, stage.name)
    redact = redactor_of(night.config)
    try:
        with withheld(redact), TaskReporter(stage.name, get_run_logger(), run) as reporter:
            record = perform(
                night.store,
                stage,
                key,
                section,
                {role: result.artifact for role, result in inputs.items()},
                seed=night.config.seed,
                device=resolve_device(night.config.runtime.device),
                reporter=reporter,
                force=stage.name in night.force and not _done_tonight(night, key),
                labels={"pipeline": night.config.name, "mlflow_run_id": run.run_id},
                execute=_clean(_launched(stage, night, redact) or stage.execute, redact),
            )
    except Exception as error:
        # The frames hold the model: a retry needs its memory.
        traceback.clear_frames(error.__traceback__)
        tracking.fail_stage(run, error)
        raise
    parents = {role: record_of(night.store, result) for role, result in inputs.items()}
    cached = done_earlier(night, record)
    tracking.close_stage(run, record, parents, store=night.store, cached=cached)
    return result_of(night.store, record)


def _clean(execute: Callable[..., Metrics], redact: Redact) -> Callable[..., Metrics]:
    """Keep secrets out of what a stage raises, before the store notes why an attempt failed."""

    def clean(section: Section, context: StageContext, **folders: Path) -> Metrics:
        with withheld(redact):
            return execute(section, context, **folders)

    return clean


def _launched(stage: Stage, night: Night, redact: Redact) -> Callable[..., Metrics] | None:
    """Return what executes a stage in its own process, or None where it runs in this one."""
    runtime = night.config.runtime
    if runtime.launcher == "inline":
        return None
    name = f"{night.parent.flow_run_id}/{stage.name}.{task_run.run_count}.log"
    in_ranks = runtime.launcher == "accelerate" and stage.data_parallel
    launch = Launch(
        log=night.store.log_path(name),
        ranks=runtime.ranks if in_ranks else None,
        minutes=runtime.stage_minutes,
        redact=redact,
        without=variables_of(night.config, stage.name),
    )
    return in_own_process(stage, launch)
