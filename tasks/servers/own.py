"""The servers and the worker that `requant up` runs for a state folder, and where they answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    temporary_settings,
)
from prefect.settings.legacy import Setting

from requant.config import Config
from requant.machine.services import served_at
from requant.store import Store
from tasks.servers.access import credentials
from tasks.tracking.connection import default_uri
from tasks.tracking.protected import MLFLOW

PREFECT, WORKER = "prefect-server", "worker"


def prefect_api(store: Store) -> str | None:
    """Return the address of the API of the Prefect server of a state folder, where it runs."""
    return served_at(store, PREFECT)


def client_settings(url: str, given: str) -> dict[Setting, Any]:
    """Return what Prefect's client needs to talk to a server.

    Args:
        url: Of its API.
        given: user:password; empty for what the environment says.
    """
    return {PREFECT_API_URL: url, **({PREFECT_API_AUTH_STRING: given} if given else {})}


@contextmanager
def talking_to_own(store: Store) -> Iterator[None]:
    """Let Prefect's client talk to the server of a state folder for the length of a block."""
    url = prefect_api(store)
    with temporary_settings(client_settings(url, credentials(store)) if url else {}):
        yield


def mlflow_pages(store: Store) -> str | None:
    """Return the address of the MLflow server of a state folder, where it runs."""
    return served_at(store, MLFLOW)


def with_pages(config: Config) -> Config:
    """Let the links of a night lead to the MLflow server that shows its database already."""
    store = Store(config.state.resolve())
    tracking = config.tracking
    pages = mlflow_pages(store)
    shown = (tracking.uri or default_uri(store.root)) == default_uri(store.root)
    if tracking.pages or pages is None or not shown:
        return config
    return config.model_copy(update={"tracking": tracking.model_copy(update={"pages": pages})})
