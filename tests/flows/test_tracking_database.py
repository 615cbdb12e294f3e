"""MLflow's database: made, upgraded, vanished, held or somebody else's, and nothing is lost."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.store.db.utils import _get_alembic_config
from sqlalchemy import create_engine

from requant.errors import ConfigError, DiskFullError, TransientError
from requant.store import StageRecord, Store
from tasks import tracking
from tasks.tracking import database
from tasks.tracking.connection import transient
from tests.support.nights import make_night
from tests.support.tracked import ROOT, tables, track


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def store(state: Path) -> Store:
    return Store(state)


@pytest.fixture(scope="module")
def uri(state: Path) -> str:
    return tracking.prepare_database(None, state)


@pytest.fixture(scope="module")
def records(store: Store) -> dict[str, StageRecord]:
    return make_night(store)


@pytest.fixture(scope="module")
def night(uri: str, store: Store, records: dict[str, StageRecord]) -> tracking.TrackingRun:
    return track(uri, store, records, "flow-1")


def test_two_that_come_first_both_find_a_database(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tasks import tracking\n"
        "uri = tracking.prepare_database(None, Path(sys.argv[1]))\n"
        "print(tracking.open_parent(uri, 'race', sys.argv[2], 'night', {}).run_id)\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    results = [racer.communicate(timeout=180) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], results
    assert len({out for out, _ in results}) == 2


def test_database_of_an_older_mlflow_is_upgraded(tmp_path: Path) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    uri = tracking.default_uri(tmp_path)
    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(uri)
    newest = ScriptDirectory.from_config(config).get_revision("head")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, newest.down_revision)
    assert utils._get_schema_version(engine) == newest.down_revision

    assert tracking.prepare_database(None, tmp_path) == uri
    assert utils._get_schema_version(engine) == newest.revision


def prepared_until(state: Path, true: Callable[[], object] | None = None) -> str:
    """Prepare a database in another process; kill that as soon as something is true."""
    script = "import sys; from pathlib import Path; from tasks import tracking\n"
    script += "tracking.prepare_database(None, Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", script, str(state)]
    with (state / "stderr").open("w+") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
        while true is not None and process.poll() is None and not true():
            time.sleep(0.005)
        if true is not None:
            process.kill()
        ended = process.wait(120)
        assert ended == (0 if true is None else -signal.SIGKILL)
    return (state / "stderr").read_text()


def test_a_kill_while_the_database_is_made_harms_nothing(tmp_path: Path) -> None:
    draft = tmp_path / ".mlflow.db.migrating"
    prepared_until(tmp_path, lambda: draft.exists() and "trace_info" in tables(draft))
    path = tmp_path / "mlflow.db"
    assert tables(path) == set()
    assert draft.exists()
    # What killed versions of before left where the database belongs: half of the migrations.
    draft.replace(path)
    assert "runs" in tables(path)
    prepared_until(tmp_path)
    assert not list(tmp_path.glob(".mlflow.db*"))
    parent = tracking.open_parent(f"sqlite:///{path}", "requant", "flow", "night", {})
    assert parent.client.get_run(parent.run_id).info.status == "RUNNING"


@pytest.fixture
def old_database(night: tracking.TrackingRun, state: Path, tmp_path: Path) -> Path:
    """A database with a night in it, made by the MLflow before."""
    path = tmp_path / "mlflow.db"
    shutil.copy(state / "mlflow.db", path)
    config = _get_alembic_config(f"sqlite:///{path}")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    engine.dispose()
    return path


def test_an_old_database_is_upgraded_on_a_copy_and_keeps_what_it_holds(
    night: tracking.TrackingRun, state: Path, old_database: Path, tmp_path: Path
) -> None:
    old = tables(old_database)
    draft = tmp_path / ".mlflow.db.migrating"
    prepared_until(tmp_path, draft.exists)
    assert tables(old_database) == old
    uri = tracking.prepare_database(None, tmp_path)
    assert tables(old_database) == tables(state / "mlflow.db")
    assert MlflowClient(uri).get_run(night.run_id).info.status == "FINISHED"
    assert not draft.exists()


def test_an_upgrade_loses_nothing_that_was_written_meanwhile(
    old_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "SELECT value FROM experiment_tags WHERE key LIKE 'note%'"
    write = "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, 0)"
    refused = threading.Event()

    def write_during_the_upgrade() -> None:
        draft = old_database.with_name(f".{old_database.name}.migrating")
        while not draft.exists():
            time.sleep(0.005)
        with closing(sqlite3.connect(old_database, 0.0)) as other:
            try:
                other.execute(write, ("note2", "late"))
                other.commit()
            except sqlite3.OperationalError:
                refused.set()

    with closing(sqlite3.connect(old_database)) as writer:
        writer.execute(write, ("note1", "early"))
        monkeypatch.setattr(database, "WAIT_SECONDS", 0.2)
        with pytest.raises(TransientError, match=r"mlflow.db is in use by .*; stop what uses it"):
            database.migrate(old_database)
        assert not database.is_current(old_database)
        monkeypatch.setattr(database, "WAIT_SECONDS", 30.0)
        upgrade = threading.Thread(target=database.migrate, args=(old_database,))
        late = threading.Thread(target=write_during_the_upgrade)
        late.start()
        upgrade.start()
        time.sleep(0.5)
        # The upgrade waits for it.
        assert upgrade.is_alive()
        writer.commit()
    upgrade.join()
    late.join()
    assert database.is_current(old_database)
    with closing(sqlite3.connect(old_database)) as reader:
        found = {value for (value,) in reader.execute(kept)}
    # Whoever came during the upgrade was told that nothing was written.
    assert refused.is_set()
    assert found == {"early"}


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE recipes (name TEXT); INSERT INTO recipes VALUES ('bread')",
        "CREATE TABLE recipes (name TEXT)",
        "CREATE TABLE alembic_version (version_num TEXT);"
        "INSERT INTO alembic_version VALUES ('feedc0ffee00')",
        "CREATE TABLE alembic_version (number INTEGER)",
    ],
    ids=["filled", "empty", "another_alembic", "another_column"],
)
def test_a_database_of_somebody_else_is_not_taken_for_a_half_made_one(
    tmp_path: Path, script: str
) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as other:
        other.executescript(script)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"mlflow.db is no database of MLflow; give another file"):
        tracking.prepare_database(None, tmp_path)
    assert path.read_bytes() == before


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("bread, butter\n" * 100)
    with pytest.raises(ConfigError, match=r"mlflow.db is no database of MLflow"):
        tracking.prepare_database(None, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"mlflow.db cannot be opened for writing .*; give a"):
        tracking.prepare_database(None, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"the folder of .*/file/mlflow.db cannot be made .*; gi"):
        tracking.prepare_database(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path)


def test_a_database_that_is_held_is_worth_a_retry(
    uri: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.2)
    with closing(sqlite3.connect(state / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TransientError, match=r"mlflow.db is in use by another process"):
            tracking.prepare_database(None, state)
    assert tracking.prepare_database(None, state) == uri


def test_a_database_of_a_newer_mlflow_is_left_alone(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(state / "mlflow.db", path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'feedc0ffee00'")
    with pytest.raises(ConfigError, match=r"schema feedc0ffee00, which MLflow .* a newer MLflow"):
        tracking.prepare_database(None, tmp_path)


def test_a_database_that_vanished_is_made_anew_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.prepare_database(None, tmp_path)
    assert "warning" not in capsys.readouterr().err
    make_night(Store(tmp_path))
    (tmp_path / "mlflow.db").unlink()
    tracking.prepare_database(None, tmp_path)
    said = capsys.readouterr().err
    assert f"warning: {tmp_path}/mlflow.db is missing, while {tmp_path} holds 8 pieces" in said
    assert "promote a model again" in said


def test_other_databases_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri: is neither .*mlflow server") as caught:
        tracking.prepare_database("postgresql://user:secret@db/x", tmp_path)
    assert "secret@" not in str(caught.value)


def test_relative_database_does_not_follow_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.prepare_database("sqlite:///here.db", tmp_path) == (
        f"sqlite:///{tmp_path.resolve()}/here.db"
    )


@pytest.mark.parametrize("name", ["night #1", "100%41", "dätä [v1] {x}"])
def test_the_database_lies_in_the_state_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    state = tmp_path / name
    state.mkdir()
    uri = tracking.prepare_database(None, state)
    parent = tracking.open_parent(uri, "named", "flow-n", "night", {})
    tracking.close_parent(parent, "FINISHED", "", "", {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (state / "mlflow.db").stat().st_size > 0


def test_a_state_folder_that_no_address_can_name_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "what?" / "state"
    state.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"state: .*what\?/state holds '\?', which ends a file's"):
        tracking.prepare_database(None, state)
    assert [path.name for path in tmp_path.iterdir()] == ["what?"]


def test_a_full_disk_is_no_server_that_is_away(tmp_path: Path) -> None:
    uri = tracking.default_uri(tmp_path)
    said = "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO tags]"
    text = r"mlflow.db is full .*Free space \(`requant gc"
    with pytest.raises(DiskFullError, match=text) as caught, transient(uri):
        raise MlflowException(said, error_code=INTERNAL_ERROR)
    assert "INSERT" not in str(caught.value)
