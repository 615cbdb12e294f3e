"""Who is told when a run fails, a gate refuses or a model is promoted, through Prefect's blocks."""

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from requant.errors import ConfigError
from tasks.promote import PROMOTED, REFUSED
from tasks.servers.setup import GO_ON, OF_REQUANT, apply_automation

ENDED_BADLY = frozenset({"prefect.flow-run.Failed", "prefect.flow-run.Crashed"})
BODY = """{{ event.event }}: {{ event.resource["prefect.resource.name"] }}
{% for name, value in event.payload.items() if name != "intended" %}{{ name }}: {{ value }}
{% endfor %}"""
ANY = ResourceSpecification({})
RULES = (
    ("failures", "requant: a run failed", ENDED_BADLY, "prefect.flow-run.*", OF_REQUANT, GO_ON),
    ("refusals", "requant: a model was refused", frozenset({REFUSED}), "model.*", ANY, ""),
    ("promotions", "requant: a model was promoted", frozenset({PROMOTED}), "model.*", ANY, ""),
)
"""What is told, its subject, the events, the resources they are about, whose they are, and the last
words."""


def notify_through(block: str) -> list[str]:
    """Make, or change, the automations that tell of failures, refusals and promotions.

    Args:
        block: `type/name` of a notification block that is saved on the server, as
            `prefect block ls` shows it.

    Returns:
        Names of the automations.

    Raises:
        ConfigError: If there is no such block, or it is not one that notifies.
    """
    document = _block_id(block)
    names = []
    for what, subject, events, resource, owner, last in RULES:
        trigger = EventTrigger(
            expect=set(events),
            match=ResourceSpecification({"prefect.resource.id": resource}),
            match_related=owner,
            posture=Posture.Reactive,
            threshold=1,
        )
        action = SendNotification(block_document_id=document, subject=subject, body=BODY + last)
        names.append(f"requant - tell of {what}")
        apply_automation(AutomationCore(name=names[-1], trigger=trigger, actions=[action]))
    return names


def _block_id(block: str) -> UUID:
    kind, _, name = block.partition("/")
    try:
        with get_client(sync_client=True) as client:
            found = client.read_block_document_by_name(name, kind)
    except ObjectNotFound as error:
        raise ConfigError(
            f"block {block!r}: is not on the server; give type/name as `prefect block ls` lists "
            "them, e.g. slack-webhook/team"
        ) from error
    schema = found.block_schema
    if schema is not None and "notify" not in schema.capabilities:
        raise ConfigError(
            f"block {block!r}: is no notification block, so nothing would arrive; save one in "
            "Prefect under Blocks with the capability notify (Slack, Teams, e-mail, a custom "
            "webhook) and give its type/name"
        )
    assert found.id is not None
    return found.id
