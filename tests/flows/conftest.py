"""A real Prefect server with its own database, for this folder only; an empty MLflow database."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from requant.store.layout import DATABASE
from tasks.tracking.database import migrate
from tests.support.shared import Shared


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def migrated(shared: Shared) -> Path:
    """MLflow's database after its migrations: they take longer than most tests that need it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        migrate(folder / DATABASE)

    return shared("mlflow", make) / DATABASE


@pytest.fixture
def mlflow_database(migrated: Path, tmp_path: Path) -> None:
    """Lay a database that holds nothing yet into the state folder of a test, `tmp_path`."""
    shutil.copy(migrated, tmp_path)
