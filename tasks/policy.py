"""How every stage becomes a Prefect task: cached by its key, retried only where that can help."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from prefect import Task, get_run_logger
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from requant.config import Config, Section
from requant.errors import ArtifactError, is_transient
from requant.stage import Stage, StageKey, perform
from requant.store import StageRecord, Store, artifact_of, read_record
from tasks import tracking
from tasks.caching import StageResult, VerifiedJSONSerializer, cache_policy
from tasks.reporting import TaskReporter

JITTER = 0.5
"""Share by which a retry's delay is lengthened at random: many runs must not return at once."""


@dataclass(frozen=True)
class Night:
    """What all stages of one flow run share."""

    config: Config
    store: Store
    force: frozenset[str]
    parent: tracking.TrackingRun


@dataclass(frozen=True)
class StageTask:
    """A stage and the body of its Prefect task."""

    stage: Stage
    body: Callable[..., StageResult]
    tags: tuple[str, ...]


def stage_task(stage: Stage, tags: Iterable[str] = ()) -> StageTask:
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
    prefect_task: Task[..., StageResult] = Task(
        task.body,
        name=task.stage.name,
        task_run_name=f"{task.stage.name}-{key.digest[:8]}",
        tags=task.tags,
        cache_policy=cache_policy(night.store),
        persist_result=True,
        cache_result_in_memory=False,
        result_storage=night.store.results_path(),
        result_serializer=VerifiedJSONSerializer(),
        refresh_cache=task.stage.name in night.force,
        retries=runtime.retries,
        retry_delay_seconds=exponential_backoff(runtime.retry_seconds),
        retry_jitter_factor=JITTER,
        retry_condition_fn=_may_retry,
    )
    section = getattr(night.config, task.stage.name)
    state = cast(State[Any], prefect_task(night, section, key, inputs, return_state=True))
    return state.result(), state


def retrying(config: Config) -> Retrying:
    """Retry what the flow does outside tasks (hub look-ups, MLflow) as its tasks are retried."""
    runtime = config.runtime
    return Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(runtime.retries + 1),
        wait=wait_exponential_jitter(runtime.retry_seconds, jitter=JITTER * runtime.retry_seconds),
        reraise=True,
    )


def _may_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    try:
        state.result()
    except Exception as error:
        return is_transient(error)
    return False


def record_of(store: Store, result: StageResult) -> StageRecord:
    """Return the record behind a result that was just made or verified."""
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
    from requant.models import resolve_device

    run = tracking.open_stage(night.parent, stage.name)
    try:
        with TaskReporter(stage.name, get_run_logger(), run) as reporter:
            record = perform(
                night.store,
                stage,
                key,
                section,
                {role: result.artifact for role, result in inputs.items()},
                seed=night.config.seed,
                device=resolve_device(night.config.runtime.device),
                reporter=reporter,
                force=stage.name in night.force,
                labels={"pipeline": night.config.name, "mlflow_run_id": run.run_id},
            )
    except Exception as error:
        tracking.fail_stage(run, error)
        raise
    parents = {role: record_of(night.store, result) for role, result in inputs.items()}
    tracking.close_stage(run, record, parents, store=night.store, cached=False)
    return StageResult(stage=stage.name, key=key.digest, artifact=artifact_of(night.store, record))
