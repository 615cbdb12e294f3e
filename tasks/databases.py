"""Make and upgrade the Prefect and MLflow databases once, however many runs start at once."""

import os
import subprocess
import sys
from pathlib import Path

import prefect
from prefect.settings import get_current_settings

from requant.canonical import digest_of
from requant.config import Config
from requant.errors import TerminalError
from requant.store import Store, locked
from tasks import tracking
from tasks.reporting import quiet_libraries


def prepare_prefect(config: Config) -> None:
    """Upgrade the database of a temporary Prefect server; nothing to do where the API is remote.

    Raises:
        TerminalError: If Prefect's own upgrade fails, with its output.
    """
    settings = get_current_settings()
    if settings.api.url is not None:
        return
    store = Store(config.state.resolve())
    url = settings.server.database.connection_url
    address = url.get_secret_value() if url else str(settings.home)
    done = store.lock_path(f"prefect-{digest_of([address, prefect.__version__])[:16]}.done")
    with locked(done.with_suffix(".lock")):
        if not done.exists():
            _upgrade_prefect()
            done.touch()


def prepare_mlflow(config: Config) -> str:
    """Make or upgrade the MLflow database; return its address."""
    quiet_libraries()
    return tracking.prepare_database(config.tracking.uri, Store(config.state.resolve()).root)


def _upgrade_prefect() -> None:
    command = [str(Path(sys.executable).parent / "prefect"), "server", "database", "upgrade", "-y"]
    upgrade = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if upgrade.returncode:
        raise TerminalError(f"{' '.join(command)}: failed:\n{upgrade.stdout}{upgrade.stderr}")
