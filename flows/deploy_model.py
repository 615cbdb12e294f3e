"""Bring the champion to where it serves; started by the event `model.promoted`."""

from datetime import UTC, datetime

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from requant.config import Config
from requant.config.loading import given_config, given_name
from tasks.deploy_model import deploy_model as deploy_version
from tasks.servers.folders import keep_private, warn


def deployment_name() -> str:
    """Name a flow run after the version it deploys, the champion where none is named."""
    name = given_name(flow_run.parameters["config"])
    version = flow_run.parameters.get("version")
    what = f"v{version}" if version else "champion"
    return f"{name} {what} {datetime.now(UTC):%Y-%m-%d %H:%M}"


# Prefect would log every parameter where one is wrong.
@flow(name="deploy-model", flow_run_name=deployment_name, validate_parameters=False)
def deploy_model(config: Config, version: int | None = None, digest: str | None = None) -> None:
    """Verify every byte of a promoted model, load it cold, let it answer, and deploy it.

    Args:
        config: The model line's configuration; its `deploy` section says what to do.
        version: Of the registered model; the champion where it is not given.
        digest: The version must have it; where it is not given, any is right.
    """
    given = given_config(config)
    warn(keep_private(given.state.resolve(), given.tracking.uri))
    get_run_logger().info(deploy_version(given, version, digest))
