"""What a night leaves in a real MLflow database."""

import dataclasses
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from mlflow import MlflowClient
from mlflow.store.db.utils import _get_alembic_config
from sqlalchemy import create_engine

from requant.errors import ConfigError, TransientError
from requant.store import StageRecord, Store
from tasks import tracking
from tasks.nightly.preflight import problems_of
from tasks.tracking import database
from tasks.tracking.connection import public, transient
from tasks.tracking.database import holds_nothing
from tests.support.chain import micro_config
from tests.support.nights import CHAIN, make_night

ROOT = Path(__file__).parents[2]


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


def track(
    uri: str,
    store: Store,
    records: Mapping[str, StageRecord],
    flow_run: str,
    *,
    experiment: str = "requant",
    cached: bool = False,
) -> tracking.TrackingRun:
    parent = tracking.open_parent(uri, experiment, flow_run, "night", {"name": "tiny"})
    for stage, record in records.items():
        run = tracking.open_stage(parent, stage)
        for name, curve in {} if cached else record.curves.items():
            for step, value in curve:
                tracking.log_points(run, {name: value}, step)
        inputs = {role: records[source] for role, source in CHAIN[stage][1].items()}
        tracking.close_stage(run, record, inputs, store=store, cached=cached)
    tracking.close_parent(parent, "FINISHED", "<p>lineage</p>", "<p>report</p>", {"seconds": 1.0})
    return parent


@pytest.fixture(scope="module")
def night(uri: str, store: Store, records: dict[str, StageRecord]) -> tracking.TrackingRun:
    return track(uri, store, records, "flow-1")


def children(parent: tracking.TrackingRun) -> dict[str, Any]:
    query = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    found = parent.client.search_runs([parent.experiment_id], query)
    # A search leaves model inputs out.
    runs = [parent.client.get_run(run.info.run_id) for run in found]
    return {run.data.tags["requant.execution.stage"]: run for run in runs}


def logged_models(run: tracking.TrackingRun) -> dict[str, Any]:
    models = run.client.search_logged_models([run.experiment_id])
    assert len({model.params["digest"] for model in models}) == len(models)
    return {model.params["stage"]: model for model in models}


def artifact_names(client: Any, model_id: str) -> set[str]:
    return {file.path for file in client.list_logged_model_artifacts(model_id)}


def test_night_holds_every_stage(night: tracking.TrackingRun) -> None:
    parent = night.client.get_run(night.run_id)
    runs = children(night)

    assert set(runs) == set(CHAIN)
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert parent.data.params["name"] == "tiny"
    assert {file.path for file in night.client.list_artifacts(night.run_id)} == {
        "lineage.html",
        "report.html",
    }
    note = parent.data.tags["mlflow.note.content"]
    assert [line.split("]")[0] for line in note.splitlines()[3:]] == [f"1. [{x}" for x in CHAIN]
    assert f"runs/{night.run_id}/artifacts/lineage.html?" in note.splitlines()[1]
    chain = [model.model_id for model in logged_models(night).values()]
    assert all(f"models/{model_id}?" in note.splitlines()[0] for model_id in chain)
    assert runs["merge_fp16"].data.params["config.optimisation.max_steps"] == "40"


def test_artifact_root_is_absolute_and_in_the_state_folder(
    night: tracking.TrackingRun, state: Path
) -> None:
    root = night.client.get_experiment(night.experiment_id).artifact_location
    assert root.startswith((state.resolve() / "mlartifacts").as_uri())


def test_edges_join_the_models(
    night: tracking.TrackingRun, records: dict[str, StageRecord]
) -> None:
    models = logged_models(night)
    assert set(models) == {
        name for name, record in records.items() if record.kind in {"model", "adapter"}
    }
    for stage, run in children(night).items():
        taken = {item.model_id for item in run.inputs.model_inputs}
        given = [item.model_id for item in run.outputs.model_outputs]
        sources = [source for source in CHAIN[stage][1].values() if source in models]
        assert taken == {models[source].model_id for source in sources}
        assert given == ([models[stage].model_id] if stage in models else [])


def test_datasets_have_digest_and_context(
    night: tracking.TrackingRun, records: dict[str, StageRecord]
) -> None:
    used = {
        stage: item for stage, run in children(night).items() for item in run.inputs.dataset_inputs
    }
    contexts = {stage: item.tags[0].value for stage, item in used.items()}
    assert contexts == {
        "train_adapter": "training",
        "merge_fp16": "heldout",
        "continue_train": "training",
        "requantize_gptq": "calibration",
        "evaluate": "evaluation",
    }
    digest = records["prepare_data"].digest
    assert {item.dataset.digest for item in used.values()} == {digest[:36]}


def test_breadcrumb_links_every_ancestor_in_order(night: tracking.TrackingRun) -> None:
    models = logged_models(night)
    crumbs = models["requantize_gptq"].tags["mlflow.note.content"].splitlines()[0]
    chain = ["prepare_base", "quantize_base", "train_adapter", "merge_fp16", "continue_train"]
    places = [crumbs.index(f"models/{models[stage].model_id}?") for stage in chain]
    assert places == sorted(places)
    assert crumbs.endswith(f"**gptq `{models['requantize_gptq'].params['digest'][:8]}`**")

    base = models["prepare_base"].tags["mlflow.note.content"]
    led_to = base.split("**Led to:**")[1]
    assert models["quantize_base"].model_id in led_to
    assert models["merge_fp16"].model_id in led_to
    assert models["continue_train"].model_id not in led_to


def test_scores_are_on_the_models(night: tracking.TrackingRun) -> None:
    models = logged_models(night)
    scores = {metric.key: metric.value for metric in models["requantize_gptq"].metrics}
    assert scores == {"describe_choice/acc": 0.41, "docstrings/word_perplexity": 61.2}
    history = night.client.get_metric_history(
        children(night)["evaluate"].info.run_id, "describe_choice/acc"
    )
    assert [(point.step, point.value) for point in history] == [(0, 0.31), (1, 0.41)]


def test_weights_stay_in_the_store(night: tracking.TrackingRun) -> None:
    models = logged_models(night)
    merged = artifact_names(night.client, models["merge_fp16"].model_id)
    assert merged == {"manifest.json", "config.json"}
    adapter = artifact_names(night.client, models["train_adapter"].model_id)
    assert adapter == {"manifest.json", "adapter_config.json", "model.safetensors"}
    evaluation = night.client.list_artifacts(children(night)["evaluate"].info.run_id)
    assert "scores.json" in {file.path for file in evaluation}


def test_curves_are_whole(night: tracking.TrackingRun, records: dict[str, StageRecord]) -> None:
    run_id = children(night)["train_adapter"].info.run_id
    points = night.client.get_metric_history(run_id, "loss")
    expected = records["train_adapter"].curves["loss"]
    assert tuple((point.step, point.value) for point in points) == expected


def test_curves_arrive_while_the_stage_runs(night: tracking.TrackingRun, uri: str) -> None:
    parent = tracking.open_parent(uri, "live", "flow-live", "night", {})
    run = tracking.open_stage(parent, "train_adapter")
    for step in range(120):
        tracking.log_points(run, {"loss": 1.0}, step)
    assert len(run.client.get_metric_history(run.run_id, "loss")) >= 100
    tracking.close_parent(parent, "KILLED", "", "", {})
    # Whoever cancels a night did not find a fault in its stage.
    assert run.client.get_run(run.run_id).info.status == "KILLED"


def test_cached_night_has_its_own_runs_and_no_new_models(
    night: tracking.TrackingRun, uri: str, store: Store, records: dict[str, StageRecord]
) -> None:
    before = {stage: model.model_id for stage, model in logged_models(night).items()}
    again = track(uri, store, records, "flow-2", cached=True)

    assert {stage: model.model_id for stage, model in logged_models(night).items()} == before
    runs = children(again)
    assert {run.data.tags["cache"] for run in runs.values()} == {"hit"}
    given = runs["merge_fp16"].outputs.model_outputs
    assert [item.model_id for item in given] == [before["merge_fp16"]]
    assert "Cached" in runs["merge_fp16"].data.tags["mlflow.note.content"]
    assert runs["merge_fp16"].data.metrics["parity_kl"] == pytest.approx(1.2e-5)
    # The models' scores are already there.
    assert len(logged_models(night)["requantize_gptq"].metrics) == 2


def test_repeating_a_flow_run_adds_nothing(
    night: tracking.TrackingRun, uri: str, store: Store, records: dict[str, StageRecord]
) -> None:
    again = track(uri, store, records, "flow-1")
    assert again.resumed
    assert again.run_id == night.run_id
    runs = children(night)
    assert len(runs) == len(CHAIN)
    assert all(len(run.outputs.model_outputs) <= 1 for run in runs.values())
    assert len(runs["evaluate"].inputs.model_inputs) == 2
    assert runs["train_adapter"].info.status == "FINISHED"


def test_killed_night_is_resumed(uri: str, state: Path) -> None:
    script = (
        "import os, signal, sys; from tasks import tracking\n"
        "parent = tracking.open_parent(sys.argv[1], 'killed', 'flow-k', 'night', {})\n"
        "run = tracking.open_stage(parent, 'train_adapter')\n"
        "tracking.open_stage(parent, 'prepare_base')\n"
        "print(parent.run_id, run.run_id, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, uri],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parent_id, stage_id = killed.stdout.split()

    parent = tracking.open_parent(uri, "killed", "flow-k", "night", {})
    stage = tracking.open_stage(parent, "train_adapter")
    assert (parent.run_id, stage.run_id) == (parent_id, stage_id)
    assert stage.resumed
    tracking.fail_stage(stage, RuntimeError("out of patience"))
    tracking.close_parent(parent, "FAILED", "", "", {})

    runs = children(parent)
    assert parent.client.get_run(parent.run_id).info.status == "FAILED"
    assert {run.info.status for run in runs.values()} == {"FAILED"}
    assert "out of patience" in runs["train_adapter"].data.tags["mlflow.note.content"]


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


def test_server_that_is_away_is_worth_a_retry_and_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(TransientError, match=r"tracking.uri: http://127.*does not answer.*null"):
        tracking.open_parent(f"http://user:secret@127.0.0.1:{port}", "x", "f", "n", {})
    assert time.monotonic() - started < 30


def test_password_of_the_server_is_in_no_error_and_on_no_page() -> None:
    address = "http://user:secret@127.0.0.1:9/mlflow"
    with pytest.raises(TransientError) as caught:
        tracking.open_parent(address, "x", "f", "n", {})
    assert "secret" not in str(caught.value)
    with pytest.raises(TransientError) as caught, transient(address):
        raise ConnectionError(f"no way to {address}/api")
    assert "secret" not in str(caught.value)
    assert public(address) == "http://127.0.0.1:9/mlflow"


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


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


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
    assert holds_nothing(path)
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
    with pytest.raises(ConfigError, match=r"tracking.uri: 'postgresql://db/x'.*mlflow server"):
        tracking.prepare_database("postgresql://user:secret@db/x", tmp_path)


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


def test_a_server_that_is_away_is_one_problem_that_names_its_field_once(tmp_path: Path) -> None:
    config = micro_config(tmp_path, tracking={"uri": "http://127.0.0.1:9"})
    (problem,) = (found for found in problems_of(config) if "tracking" in str(found))
    assert str(problem).startswith("tracking.uri: http://127.0.0.1:9 does not answer (")
    assert problem.may_pass


def test_server_that_is_away_does_not_stop_a_training(
    night: tracking.TrackingRun, uri: str
) -> None:
    parent = tracking.open_parent(uri, "live", "flow-away", "night", {})
    run = tracking.open_stage(parent, "train_adapter")
    away = dataclasses.replace(run, uri="http://127.0.0.1:9")
    for step in range(200):
        tracking.log_points(away, {"loss": 1.0}, step)
    assert len(away.points) == 200
    tracking.fail_stage(away, RuntimeError("what really happened"))
    tracking.fail_stage(dataclasses.replace(away, uri=uri), RuntimeError("stopped"))
    assert len(run.client.get_metric_history(run.run_id, "loss")) == 200
    tracking.close_parent(parent, "FAILED", "", "", {})


def test_deleted_experiment_is_refused_with_the_way_out(uri: str) -> None:
    parent = tracking.open_parent(uri, "gone", "flow-g", "night", {})
    tracking.close_parent(parent, "FINISHED", "", "", {})
    parent.client.delete_experiment(parent.experiment_id)
    with pytest.raises(ConfigError, match=r"tracking.experiment: 'gone' was deleted.*restore"):
        tracking.open_parent(uri, "gone", "flow-g2", "night", {})


def test_importing_the_tasks_does_not_import_mlflow() -> None:
    check = "import sys, tasks.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, timeout=60)
