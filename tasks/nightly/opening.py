"""A night opened and closed in a flow run: alone on its model line, in time, looked at before."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run

from requant.config import STAGE_NAMES, Config, StageName
from requant.config.loading import given_name
from requant.errors import ConfigError, RequantError
from requant.machine.withheld import withheld
from requant.models.device import resolve_device
from requant.store import Store, locked
from requant.store.documents import seal_earlier
from requant.store.locks import acquire, whose
from requant.wording import shown
from tasks import tracking
from tasks.nightly.night import OpenNight
from tasks.nightly.preflight import refuse_problems
from tasks.nightly.reporter import keep_log_readable
from tasks.nightly.row_ledger import NothingToDo, open_ledger
from tasks.nightly.way_on import way_on
from tasks.retry import retrying
from tasks.secrets import redactor_of, short_secrets
from tasks.servers.folders import close_again, keep_private, warn
from tasks.stage_task import Night

LOOK_SECONDS = 1.0
UNSTARTED = [StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLED]


class NightSkipped(RequantError):
    """The night must not run now; the text is the reason."""


def night_name() -> str:
    """Name a flow run after its model line and the minute it starts first, in UTC."""
    name = given_name(flow_run.parameters["config"])
    # Prefect counts a run that was never told of its end as no run.
    if re.fullmatch(rf"{re.escape(name)} [\d: -]+", str(flow_run.name)):
        return str(flow_run.name)
    return f"{name} {datetime.now(UTC):%Y-%m-%d %H:%M}"


@contextmanager
def night_of(config: Config, force: list[StageName]) -> Iterator[OpenNight]:
    """Open a night in the current flow run and close it whatever happens inside.

    Raises:
        NightSkipped: If another night of this model line is in progress, or this one is overdue.
        ConfigError: If `force` names a stage that the configuration switches off, or there is no
            GPU although the configuration asks for one.
    """
    with withheld(redactor_of(config)):
        yield from _opened(config, force)


def _opened(config: Config, force: list[StageName]) -> Iterator[OpenNight]:
    for stage in force:
        if stage not in STAGE_NAMES:
            raise ConfigError(f"force: {shown(stage)} is no stage; valid: {', '.join(STAGE_NAMES)}")
        if not config.runs(stage):
            raise ConfigError(f"force: {stage} is switched off by {stage}.enabled=false")
    if config.runtime.device == "cuda":
        # A GPU that is not there must be known before the first stage; auto and cpu always are.
        resolve_device(config.runtime.device)
    _refuse_late(config)
    store = Store(config.state.resolve())
    warn(keep_private(store.root, config.tracking.uri))
    with _alone(config, store):
        keep_log_readable()
        warn(short_secrets(config))
        seal_earlier(store)
        retrying(config)(refuse_problems, config)
        uri = retrying(config)(tracking.prepare_database, config.tracking.uri, store.root)
        began = open_ledger(config, store)
        parent = retrying(config)(
            tracking.open_parent,
            uri,
            config.tracking.experiment,
            flow_run_id=str(flow_run.id),
            name=str(flow_run.name),
            params=config.open_fields(),
            pages=config.tracking.pages,
        )
        retrying(config)(tracking.end_orphans, parent, config.name, store.root)
        opened = OpenNight(Night(config, store, frozenset(force), parent, _first_start(), began))
        # Between stages too nobody may collect what the next one reads.
        with locked(store.use_lock, shared=True, say=get_run_logger().info):
            try:
                yield opened
            except NothingToDo:
                opened.close("FINISHED")
                raise
            except BaseException as error:
                get_run_logger().error("%s", str(error) or type(error).__name__)
                failed = isinstance(error, Exception)
                when = "when the cause is mended" if failed else "to go on with it"
                get_run_logger().error("%s: %s", when, way_on())
                opened.close("FAILED" if failed else "KILLED")
                raise
            else:
                opened.close("FINISHED")
            finally:
                warn(close_again(store.root))


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
    if late <= limit:
        return
    newest = _newest_due(due)
    if (datetime.now(UTC) - newest).total_seconds() / 60 <= limit:
        # Of two at once Prefect cancels the one that comes second, which may be that one.
        get_run_logger().info(
            "this night was due at %s, %.0f minutes ago; it takes the place of the one that was "
            "due at %s",
            f"{due:%Y-%m-%d %H:%M} UTC",
            late,
            f"{newest:%Y-%m-%d %H:%M} UTC",
        )
    else:
        raise NightSkipped(
            f"this night was due at {due:%Y-%m-%d %H:%M} UTC, {late:.0f} minutes ago: later than "
            f"runtime.max_late_minutes={limit:g}; it is skipped, the next one takes its place"
        )


def _newest_due(due: datetime) -> datetime:
    """Return when the last night of this deployment was due that waits, or was cancelled for this.

    Prefect cancels what it finds no slot for; what was cancelled before the worker took this run
    was not cancelled for it.
    """
    if deployment.id is None:
        return due
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[UUID(deployment.id)]),
                expected_start_time=FlowRunFilterExpectedStartTime(
                    after_=due, before_=datetime.now(UTC)
                ),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNSTARTED)),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
        states = client.read_flow_run_states(UUID(flow_run.id))
    taken = min(state.timestamp for state in states if state.type != StateType.SCHEDULED)
    for run in runs:
        ended = run.state.timestamp if run.state_type == StateType.CANCELLED and run.state else None
        if run.expected_start_time and (ended is None or ended >= taken):
            return run.expected_start_time
    return due


def _first_start() -> float:
    """Return when the flow run started first, in seconds since the epoch: a retry keeps it."""
    context = FlowRunContext.get()
    start = context.flow_run.start_time if context and context.flow_run else None
    return start.timestamp() if start else time.time()
