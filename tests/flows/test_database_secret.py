"""Nights that read a database whose address is a secret: its readers get it, and nobody says it."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

from requant.machine.processes import environment
from requant.redaction import redactor
from tests.flows.test_nightly_rows import OFF
from tests.support.chain import MICRO
from tests.support.commands import requant, states
from tests.support.ledger_nights import chat
from tests.support.planted import holding, leaks, settle

PASSWORD = "pl4nted+pass/word~of=the%database"
KEY = "pl4nted-key-of-the-driver"
ADDRESS = f"postgresql+psycopg2://me:{PASSWORD}@"
SECRETS = {"password": PASSWORD, "key": KEY}
SAYING = """
import base64, os
said = os.environ.get("ROWS_URL")
print("marker-in-the-log", said, flush=True)
print("marker-in-base64", base64.b64encode(str(said).encode()).decode(), flush=True)
"""
"""What the process of every stage runs first."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A line that reads the rows of a database, each stage in a process that says what it has."""
    folder = tmp_path_factory.mktemp("project")
    document = yaml.safe_load(MICRO)
    document |= {name: {**document.get(name, {}), "enabled": False} for name in OFF}
    query = "SELECT messages FROM chats ORDER BY n"
    source = {"kind": "sql", "name": "tickets", "url": "env:ROWS_URL", "query": query}
    document |= {
        "state": str(folder / "state"),
        "collect_rows": {"enabled": True, "sources": [source]},
        "extend_ledger": {"min_new_rows": 8},
        "prepare_data": {"source": {"kind": "collected"}, "max_evaluation_rows": 8},
        "evaluate": {"enabled": False},
        "promote": {"enabled": False},
        "runtime": {"device": "cpu", "retries": 0, "launcher": "process"},
    }
    (folder / "line.yaml").write_text(yaml.safe_dump(document))
    with closing(sqlite3.connect(folder / "rows.db")) as database, database:
        database.execute("CREATE TABLE chats (n INTEGER, messages TEXT)")
        rows = [(n, json.dumps(chat(n)["messages"])) for n in range(30)]
        database.executemany("INSERT INTO chats VALUES (?, ?)", rows)
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(SAYING)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "path")
        assert environment()["PYTHONPATH"].startswith(str(folder / "path"))
        yield folder


def searched(project: Path, caplog: pytest.LogCaptureFixture) -> list[Path]:
    """Return where a secret could lie: MLflow, Prefect's database, the state folder, a terminal."""
    (project / "terminal.txt").write_text(caplog.text)
    database = Path(PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition("///")[2])
    places = [project, database.parent]
    settle(places)
    return places


def test_the_reader_alone_has_the_address_and_no_night_says_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = project / "line.yaml"
    where = f"sqlite:///file:{project}/rows.db"
    monkeypatch.setenv("ROWS_URL", f"{where}?uri=true&mode=ro&password={PASSWORD}&key={KEY}")
    said = requant("run", config)
    assert states(said)["prepare_data"] == "done"
    logs = {path.name: path.read_text() for path in (project / "state/logs").glob("*/*.log")}
    assert "marker-in-the-log ***" in logs["collect_rows.1.log"]
    assert "marker-in-base64 ***" in logs["collect_rows.1.log"]
    assert "marker-in-the-log None" in logs["extend_ledger.1.log"]

    # SQLite says the name of a driver of its own that it does not know.
    monkeypatch.setenv("ROWS_URL", f"{where}?uri=true&vfs={KEY}")
    said += requant("run", config, fails=1)
    assert "collect_rows.sources.tickets.url: no such vfs: ***; correct it" in said
    # Known before the night: the driver is not installed here, the variable is missing.
    monkeypatch.setenv("ROWS_URL", f"{ADDRESS}127.0.0.1:9/rows?sslpassword={KEY}")
    said += requant("run", config, fails=2)
    assert "collect_rows.sources.tickets.url: postgresql+psycopg2 needs a package" in said
    monkeypatch.delenv("ROWS_URL")
    said += requant("run", config, fails=2)
    assert "collect_rows.sources.tickets.url: the environment has no ROWS_URL, or an empty" in said

    (project / "said.txt").write_text(said)
    places = searched(project, caplog)
    read = holding(places, "no such vfs")
    assert {"prefect-test.db", "mlflow.db", "said.txt", "terminal.txt"} <= read
    assert {"prefect-test.db", "collect_rows.1.log"} <= holding(places, "marker-in-the-log")
    assert leaks(places, SECRETS) == []


def test_a_night_hides_the_address_also_where_the_reader_does_not(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("requant.collecting.sql.redactor", lambda secrets: redactor(()))
    monkeypatch.setenv("ROWS_URL", f"sqlite:///file:{project}/rows.db?uri=true&vfs={KEY}")
    said = requant("run", project / "line.yaml", "--set", "runtime.launcher=inline", fails=1)
    assert "no such vfs: ***" in said
    (project / "said.txt").write_text(said)
    assert leaks(searched(project, caplog), SECRETS) == []
