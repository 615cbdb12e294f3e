"""What goes on from where a flow run stopped."""

from prefect.context import FlowRunContext
from prefect.runtime import flow_run


def way_on() -> str:
    """Say what goes on from where the current flow run stopped."""
    if of_deployment():
        return (
            f"`prefect flow-run retry {flow_run.id}`, the Retry button "
            "or the next night goes on from what is valid"
        )
    return (
        "`requant run` with this configuration goes on from what is valid. Prefect cannot retry "
        "this flow run: it is of no deployment"
    )


def of_deployment() -> bool:
    """Tell whether a worker runs this, without asking a server that may be gone."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)
