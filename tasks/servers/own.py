"""The servers and the worker that `requant up` runs for a state folder, and where they answer."""

from requant.config import Config
from requant.machine.services import address, running
from requant.store import Store
from tasks.tracking.connection import default_uri

PREFECT, MLFLOW, WORKER = "prefect-server", "mlflow-server", "worker"
HEALTH = "/health"
"""Below the address of Prefect's API, and of MLflow's pages."""


def prefect_api(store: Store) -> str | None:
    """Return the address of the API of the Prefect server of a state folder, where it runs."""
    return _address(store, PREFECT)


def mlflow_pages(store: Store) -> str | None:
    """Return the address of the MLflow server of a state folder, where it runs."""
    return _address(store, MLFLOW)


def with_pages(config: Config) -> Config:
    """Let the links of a night lead to the MLflow server that shows its database already."""
    store = Store(config.state.resolve())
    tracking = config.tracking
    pages = mlflow_pages(store)
    shown = (tracking.uri or default_uri(store.root)) == default_uri(store.root)
    if tracking.pages or pages is None or not shown:
        return config
    return config.model_copy(update={"tracking": tracking.model_copy(update={"pages": pages})})


def _address(store: Store, name: str) -> str | None:
    if running(store, name) is None:
        return None
    # `requant down` may take its mark away between the two looks.
    found = address(store, name)
    return found and found.removesuffix(HEALTH)
