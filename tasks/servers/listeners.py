"""Who deploys a promoted model: the deployments of a server that listen for its event, if any."""

from dataclasses import dataclass

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import DeploymentStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import Automation, EventTrigger
from prefect.events.schemas.events import Resource, ResourceSpecification, matches
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from tasks.promote import PROMOTED, resource_of
from tasks.servers.setup import all_pages


@dataclass(frozen=True)
class Listener:
    """A deployment that a promotion of a model line starts."""

    name: str
    """flow/deployment, as `prefect deployment ls` shows it."""
    obstacle: str
    """What keeps it from starting now; empty where nothing does."""


def listeners_of(line: str) -> list[Listener]:
    """List the deployments on the server of the current settings that a promotion starts.

    Args:
        line: Name of the model line, as in its configuration.
    """
    with get_client(sync_client=True) as client:
        started = {
            action.deployment_id: automation.enabled
            for automation in all_pages(client.read_automations)
            if _hears(automation, line)
            for action in automation.actions
            if isinstance(action, RunDeployment) and action.deployment_id
        }
        found = []
        for deployment_id, enabled in started.items():
            try:
                deployment = client.read_deployment(deployment_id)
            except ObjectNotFound:
                continue
            found.append(_listener(client, deployment, enabled=enabled))
    return found


def outlook(line: str, command: str = "requant deploy CONFIG") -> str:
    """Say what becomes of a promoted version on the server, and what to do where nothing does.

    Args:
        line: Name of the model line.
        command: That deploys its champion, as a person types it.
    """
    server = str(PREFECT_API_URL.value()).removesuffix("/api")
    by_hand = f"`{command}` deploys it here and now"
    try:
        found = listeners_of(line)
    except Exception as error:
        # The model serves by right already; words about it must not make a failure of that, not
        # even a server of another version, whose answers this client does not understand.
        return (
            f"model.promoted is sent, but {server} does not say who listens "
            f"({type(error).__name__}: {error}); where nothing does, {by_hand}"
        )
    if not found:
        return (
            f"nothing deploys it: no deployment on {server} listens for model.promoted of {line}. "
            f"{by_hand}; for the next time give this configuration a deploy-model in prefect.yaml "
            "and deploy that: `requant up`, or `requant setup` on a server of your own"
        )
    return "; ".join(
        f"{item.name} on {server} is to deploy it, but {item.obstacle}; {by_hand}"
        if item.obstacle
        else f"model.promoted is sent: {item.name} on {server} deploys it"
        for item in found
    )


def _hears(automation: Automation, line: str) -> bool:
    trigger = automation.trigger
    return (
        isinstance(trigger, EventTrigger)
        and any(matches(expected, PROMOTED) for expected in trigger.expect)
        and ResourceSpecification.model_validate(trigger.match).matches(Resource(resource_of(line)))
    )


def _listener(
    client: SyncPrefectClient, deployment: DeploymentResponse, *, enabled: bool
) -> Listener:
    name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
    pool = deployment.work_pool_name
    if not enabled:
        obstacle = "its automation is switched off on Prefect's page of automations"
    elif deployment.status is not DeploymentStatus.READY:
        obstacle = f"no worker looks for work in its pool {pool!r}: it waits for one (`requant up`)"
    else:
        obstacle = ""
    return Listener(name, obstacle)
