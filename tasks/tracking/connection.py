"""The way to MLflow: its address, its database, and which of its errors are worth a retry."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlparse

from requant.errors import ConfigError, DiskFullError, TransientError, is_disk_full
from requant.machine.services import served_at, unreachable
from requant.store import Store, all_records, locked
from requant.store.layout import DATABASE
from requant.store.locks import Say
from requant.store.room import WAY_OUT
from tasks.servers.access import UNAUTHORIZED, credentials
from tasks.tracking.database import is_current, migrate
from tasks.tracking.protected import MLFLOW

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SQLITE = "sqlite:///"

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class TrackingRun:
    """An MLflow run that is open: a night's, or one of its stages'."""

    client: "MlflowClient" = field(repr=False)
    uri: str
    """Address of the server or database, without a password."""
    pages: str
    """Address of a server that shows it; empty where none is known."""
    experiment_id: str
    run_id: str
    flow_run_id: str
    stage: str = ""
    """Empty for the night itself."""
    points: list["Metric"] = field(default_factory=list, repr=False, compare=False)
    """Points of curves that are not sent yet."""


@contextmanager
def transient(uri: str) -> Iterator[None]:
    """Turn "the tracking server is away" into an error that is worth a retry.

    Raises:
        ConfigError: In place of a refusal of the password.
        DiskFullError: In place of a database that cannot grow.
        TransientError: In place of a lost connection, or of an answer that may pass.
    """
    from mlflow.exceptions import MlflowException
    from requests import exceptions

    away = (exceptions.ConnectionError, exceptions.Timeout, ConnectionError)
    codes = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "INTERNAL_ERROR"}
    try:
        yield
    except away as error:
        raise TransientError(_is_away(uri, error)) from error
    except MlflowException as error:
        if error.get_http_status_code() == UNAUTHORIZED:
            raise ConfigError(
                f"tracking.uri: {public(uri)} asks for a password and does not take this one, or "
                "none; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where this runs"
            ) from error
        if is_disk_full(error):
            raise _is_full(uri, error) from error
        if error.error_code not in codes:
            raise
        raise TransientError(_is_away(uri, error)) from error


def _is_full(uri: str, error: BaseException) -> DiskFullError:
    place = public(uri)
    reason = str(error).partition("\n")[0].replace(uri, place)
    return DiskFullError(
        f"tracking.uri: the disk of {place} is full ({reason}); what was to be written to it is "
        f"not, and a night goes on from what is valid. {WAY_OUT}"
    )


def _is_away(uri: str, error: BaseException) -> str:
    if not uri.startswith("http"):
        return f"tracking.uri: {uri} failed ({error})"
    # mlflow's own texts repeat the address it was given.
    reason = str(error).replace(uri, public(uri))
    return (
        f"tracking.uri: {public(uri)} does not answer ({reason}); start it, or set tracking.uri "
        "to null for a database in the state folder"
    )


def public(uri: str) -> str:
    """Return an address without user and password, fit for logs and pages."""
    parts = urlparse(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in uri else uri


def reaching(function: Callable[P, R]) -> Callable[P, R]:
    """Apply `transient` to a function whose first argument is a TrackingRun."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        run: Any = args[0]
        with transient(run.uri):
            return function(*args, **kwargs)

    return wrapper


def preload() -> None:
    """Import mlflow, for a thread that has time while the flow waits for something else."""
    # Its anonymous usage reports would be the only traffic of a night that leaves the machine.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It would print two lines for every run that ends.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow
    import mlflow.entities  # noqa: F401

    # Importing mlflow sets the levels of its loggers.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


def page(experiment_id: str, kind: str, name: str) -> str:
    """Address of a run's or a model's page, relative to the server's.

    Without the query MLflow 3 shows a first visitor its pages for agents, where a training run is
    an "evaluation run" and a model an "agent version".
    """
    return f"#/experiments/{experiment_id}/{kind}/{name}?workflowType=machine_learning"


def run_page(run: TrackingRun) -> str:
    """Address of a run's page: absolute with a server, else to be put after the address of one."""
    path = page(run.experiment_id, "runs", run.run_id)
    return f"{run.pages}/{path}" if run.pages else path


def default_uri(state: Path) -> str:
    """Return the address of the database in a state folder.

    Raises:
        ConfigError: If its path cannot stand in an address: what follows a question mark is no part
            of a file's name there, and the database would lie elsewhere.
    """
    if "?" in str(state.resolve()):
        raise ConfigError(
            f"state: {state.resolve()} holds '?', which ends a file's name in the address of "
            "MLflow's database; give a folder without it, or tracking.uri the address of a server"
        )
    return f"{SQLITE}{state.resolve()}/{DATABASE}"


def prepare_database(uri: str | None, state: Path, say: Say | None = None) -> str:
    """Make sure that there is a current database behind the address, and return the address.

    Two processes that come first at once would both migrate, so it is done under a lock beside
    the database: several state folders may share one.

    Args:
        uri: http(s):// of a server, sqlite:///..., or None for a database in the state folder.
        state: Folder of the default database.
        say: Is told who makes or upgrades the database while this waits.

    Raises:
        ConfigError: On another kind of address, and on a file that is no database of this MLflow
            or cannot be opened.
        TransientError: If another process holds the database.
    """
    address = uri or default_uri(state)
    if address.startswith(("http://", "https://")):
        _bring_password(address.rstrip("/"), Store(state))
        return address.rstrip("/")
    if not address.startswith(SQLITE):
        # mlflow would keep the artifacts of another database below the working folder.
        raise ConfigError(
            "tracking.uri: is neither http(s):// nor sqlite:/// (the value is not shown: it may "
            "hold a secret); start `mlflow server` on that database and give the server's address"
        )
    path = Path(address.removeprefix(SQLITE)).resolve()
    address = f"{SQLITE}{path}"
    preload()
    from mlflow import MlflowClient

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"tracking.uri: the folder of {path} cannot be made ({error.strerror}); give a file "
            "in a folder that this user may write to, or null for one in the state folder"
        ) from error
    lock = path.with_name(f"{path.name}.lock")
    with locked(lock, what="making or upgrading the database", say=say), transient(address):
        if not is_current(path):
            if uri is None and not path.exists():
                _say_lost(path, Store(state))
            migrate(path)
        # The first to open it makes the default experiment.
        MlflowClient(tracking_uri=address)
    return address


def _bring_password(address: str, store: Store) -> None:
    """Let mlflow bring the password where the server is the one of this state folder.

    It takes user and password from the environment alone. Those a person gave go first.
    """
    if "MLFLOW_TRACKING_USERNAME" in os.environ or address != served_at(store, MLFLOW):
        return
    user, _, password = credentials(store).partition(":")
    if user:
        os.environ |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}


def _say_lost(path: Path, store: Store) -> None:
    """Say that the work of earlier nights is there and what MLflow knew of it is not."""
    if records := all_records(store):
        print(
            f"warning: {path} is missing, while {store.root} holds {len(records)} pieces of "
            "earlier work: it is made anew, without the runs, versions, champion and rollbacks it "
            "held. Restore it from a backup, or promote a model again",
            file=sys.stderr,
        )


def probe(uri: str) -> None:
    """Raise at once where mlflow itself would try for minutes.

    Raises:
        TransientError: If the server at the address does not answer.
    """
    if urlparse(uri).scheme not in {"http", "https"}:
        return
    error = unreachable(uri)
    if error is not None:
        raise TransientError(_is_away(uri, error)) from error
