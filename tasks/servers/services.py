"""How the two servers and the worker of a machine are started."""

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from requant.errors import ConfigError
from requant.machine.services import HEALTH, Service
from requant.store import Store
from tasks.servers.own import PREFECT, WORKER
from tasks.servers.prefect_server import SERVER_AUTH, command_path
from tasks.servers.setup import HEARTBEAT_SECONDS, POOL
from tasks.tracking.protected import APP, CREDENTIALS, MLFLOW

CLIENT_AUTH = "PREFECT_API_AUTH_STRING"
LOOPBACK = ("--host", "127.0.0.1", "--port")


def page(port: int) -> str:
    """Return the address of a server of this machine."""
    return f"http://127.0.0.1:{port}"


def prefect_environment(state: Path, api: str, given: str) -> dict[str, str]:
    """Return the settings of a server and its workers that survive crashes of either.

    Args:
        state: Folder; Prefect's database lies below it.
        api: Address of the server's API.
        given: user:password of the server.
    """
    leases = "prefect.server.concurrency.lease_storage.filesystem"
    return {
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(state / "prefect")),
        "PREFECT_API_URL": api,
        CLIENT_AUTH: given,
        # In memory a restart of the server would forget which night is in progress.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def prefect_service(store: Store, settings: Mapping[str, str], port: int) -> Service:
    """Describe Prefect's server.

    Args:
        store: Of the state folder.
        settings: Of `prefect_environment`.
        port: It listens at, on the loopback address.
    """
    pages = {
        SERVER_AUTH: settings[CLIENT_AUTH],
        # Where Prefect is installed others may have no right to write.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(store.prefect_pages),
    }
    return Service(
        PREFECT,
        (command_path("prefect"), "server", "start", *LOOPBACK, str(port)),
        {**settings, **pages},
        f"{page(port)}/api{HEALTH}",
    )


def mlflow_service(root: Path, database: str, port: int, given: str) -> Service:
    """Describe MLflow's server.

    Args:
        root: Of the project, where its door is found.
        database: Address of the one it shows.
        port: It listens at, on the loopback address.
        given: user:password it asks for.

    Raises:
        ConfigError: If this installation does not know the door.
    """
    if not entry_points(group="mlflow.app", name=APP):
        raise ConfigError(
            "requant was installed by an earlier version, whose MLflow server had no password; "
            "install it again: `make .venv/ready`, or `pip install -e .`"
        )
    return Service(
        MLFLOW,
        (
            *(command_path("mlflow"), "server", "--app-name", APP, *LOOPBACK, str(port)),
            *("--workers", "1", "--backend-store-uri", database),
        ),
        {
            CREDENTIALS: given,
            "PYTHONPATH": python_path(root),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Six processes that wait for jobs nobody here starts.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        f"{page(port)}{HEALTH}",
    )


def worker_service(settings: Mapping[str, str]) -> Service:
    """Describe the worker; its settings are those of `prefect_environment`, and more."""
    command = [command_path("prefect"), "worker", "start", "--pool", POOL, "--type", "process"]
    return Service(WORKER, command, settings, None)


def python_path(root: Path) -> str:
    """Return a PYTHONPATH that finds the project's `flows` and `tasks`."""
    return os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
