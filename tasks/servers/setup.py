"""What a Prefect server holds for requant besides deployments; applying it twice is harmless."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from tasks.stage_task import ACCELERATOR, PROCESSOR

POOL = "requant"
HEARTBEAT = "prefect.flow-run.heartbeat"
HEARTBEAT_SECONDS = 30
"""The shortest Prefect allows."""
T = TypeVar("T")

SILENT_HEARTBEATS = 3
"""After so many without a sign the process is gone, not busy."""

FLOWS = ["incremental-training", "deploy-model", "maintenance"]
OF_REQUANT = ResourceSpecification(
    {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}
)
"""Other teams may use the server too."""

GO_ON = (
    "When the cause is mended, retry the run, or wait for the next night: both go on from what is "
    "valid. Prefect does not retry a run without a deployment: give `requant run` again"
)
"""For those who read of a run that ended badly."""

FINAL_EVENTS = frozenset(
    f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")
)


def prepare_server(accelerators: int, processors: int) -> None:
    """Make the work pool, the limits on stages at once, and the automation for dead runs.

    Args:
        accelerators: Stages with the tag `accelerator` that may run at once.
        processors: Stages with the tag `processor` that may run at once.
    """
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(
                WorkPoolCreate(name=POOL, type="process", base_job_template=template)
            )
        client.create_concurrency_limit(ACCELERATOR, accelerators)
        client.create_concurrency_limit(PROCESSOR, processors)
    apply_automation(
        AutomationCore(
            name="requant - mark dead runs",
            description="A run whose machine died says nothing any more.",
            trigger=_silence(),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message=f"no heartbeat for {SILENT_HEARTBEATS * HEARTBEAT_SECONDS} s: the "
                    f"process or its machine is gone. {GO_ON}",
                )
            ],
        )
    )


def _silence() -> EventTrigger:
    return EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *FINAL_EVENTS},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=OF_REQUANT,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENT_HEARTBEATS * HEARTBEAT_SECONDS),
    )


def apply_automation(automation: AutomationCore) -> None:
    """Make an automation, or change the one of this name where it differs."""
    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(automation.name)
        if found:
            # A changed automation forgets which heartbeats it was waiting for.
            if not _alike(found[0], automation):
                client.update_automation(found[0].id, automation)
        else:
            client.create_automation(automation)


def _alike(found: AutomationCore, wanted: AutomationCore) -> bool:
    """Compare what was asked for; a server gives every automation and trigger ids of its own."""
    ours, theirs = wanted.model_dump(mode="json"), found.model_dump(mode="json")
    return all(_contains(theirs.get(name), value) for name, value in ours.items())


def _contains(found: object, wanted: object) -> bool:
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(
            _contains(found.get(name), value) for name, value in wanted.items() if name != "id"
        )
    return found == wanted


def all_pages(read: Callable[..., list[T]], **filters: Any) -> list[T]:
    """Read all a server has of a kind; it gives 200 at once.

    Args:
        read: Method of Prefect's client that takes an offset.
        filters: Its other arguments.
    """
    found: list[T] = []
    while page := read(offset=len(found), **filters):
        found += page
    return found


def runs_without_deployment() -> list[FlowRun]:
    """List requant's flow runs in progress that no worker started: those of `requant run`."""
    with get_client(sync_client=True) as client:
        runs = all_pages(
            client.read_flow_runs,
            flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
            flow_run_filter=_in_state(StateType.RUNNING),
        )
    return [run for run in runs if run.deployment_id is None]


def _in_state(*types: StateType) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))


def expect_signs_of_life() -> None:
    """Let the automation for dead runs wait for a sign of each run that no worker started.

    A server that was down for some minutes has forgotten for whose it waited, and such a run would
    say Running for ever. Whoever lives sends the next one within 30 seconds.
    """
    with get_client(sync_client=True) as client:
        for run in runs_without_deployment():
            flow = client.read_flow(run.flow_id)
            emit_event(
                HEARTBEAT,
                resource={
                    "prefect.resource.id": f"prefect.flow-run.{run.id}",
                    "prefect.resource.name": run.name,
                },
                related=[
                    {
                        "prefect.resource.id": f"prefect.flow.{flow.id}",
                        "prefect.resource.role": "flow",
                        "prefect.resource.name": flow.name,
                    }
                ],
            )


def crash_runs(
    reason: str, alive: Callable[[str], bool], before: Iterable[UUID] = ()
) -> list[tuple[str, str]]:
    """Mark runs of requant's deployments whose worker is gone, so that they can be retried.

    Args:
        reason: For the run's page.
        alive: Tells whether the process of a flow run, by its id, is still there.
        before: Runs that were in progress before the worker was stopped: one that had the time may
            have called itself crashed, without the reason.

    Returns:
        Their names and ids.
    """
    with get_client(sync_client=True) as client:
        runs = _in_progress(client)
        ended = map(client.read_flow_run, set(before) - {run.id for run in runs})
        runs += [run for run in ended if run.state_type == StateType.CRASHED]
        dead = [run for run in runs if not alive(str(run.id))]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    return [(str(run.name), str(run.id)) for run in dead]


def runs_in_progress() -> list[UUID]:
    """Return the ids of the runs of requant's deployments that a worker works on."""
    with get_client(sync_client=True) as client:
        return [run.id for run in _in_progress(client)]


def _in_progress(client: SyncPrefectClient) -> list[FlowRun]:
    deployments = all_pages(client.read_deployments)
    ours = [item.id for item in deployments if item.work_pool_name == POOL]
    if not ours:
        return []
    return all_pages(
        client.read_flow_runs,
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=ours)),
        flow_run_filter=_in_state(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING),
    )
