"""Where `requant up` runs for a state folder, its commands find its servers by themselves."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from requant.config import Config
from requant.errors import ConfigError, TransientError
from requant.machine import services
from requant.machine.services import Service, running, start, stop
from requant.store import Store
from requant.store.locks import locked
from tasks import tracking
from tasks.servers import machine, prefect_server
from tasks.servers import services as service_descriptions
from tasks.servers.access import make_credentials
from tasks.servers.machine import refuse_strange_worker, stop_machine
from tasks.servers.own import PREFECT, WORKER, with_pages
from tasks.servers.services import CLIENT_AUTH
from tasks.servers.setup import all_pages, runs_without_deployment
from tasks.tracking.connection import prepare_database
from tasks.tracking.protected import MLFLOW
from tests.support.asking import asking_server
from tests.support.chain import micro_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return micro_config(tmp_path)


@pytest.fixture
def address(config: Config, tmp_path: Path) -> Iterator[str]:
    """Web servers that answer where those of Prefect and MLflow would say that they are well."""
    (tmp_path / "web" / "api").mkdir(parents=True)
    for name in ("health", "api/health"):
        (tmp_path / "web" / name).touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory"]
    command += [str(tmp_path / "web"), str(port)]
    store = Store(config.state.resolve())
    here = f"http://127.0.0.1:{port}"
    start(store, Service(PREFECT, command, {}, f"{here}/api/health"))
    yield here
    stop(store, PREFECT)


def test_the_server_of_up_is_used_where_none_is_named(config: Config, address: str) -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        prefect_server.prefect_server(config) as server,
    ):
        server.ready()
        assert not server.ours
        assert PREFECT_API_URL.value() == f"{address}/api"
        assert (
            f"`requant up` started for {config.state.resolve()} is used, {address}" in server.notice
        )


def test_a_server_a_person_names_comes_first(config: Config, address: str) -> None:
    named = PREFECT_API_URL.value()
    with prefect_server.prefect_server(config) as server:
        assert (PREFECT_API_URL.value(), server.ours, server.notice) == (named, False, "")


def test_a_server_of_up_that_hangs_is_named_with_its_log(
    config: Config, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web/api/health").unlink()
    monkeypatch.setattr(prefect_server, "START_SECONDS", 0.2)
    with (
        pytest.raises(
            TransientError, match=rf"did not answer at {address}/api .*prefect-server.log"
        ),
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        prefect_server.prefect_server(config) as server,
    ):
        stop(Store(config.state.resolve()), PREFECT)
        server.ready()


def test_links_lead_to_the_pages_that_show_the_database(config: Config, address: str) -> None:
    assert with_pages(config) is config
    store = Store(config.state.resolve())
    store.service_path(PREFECT).rename(store.service_path(MLFLOW))
    mark = store.service_path(MLFLOW).read_text().replace("/api/health", "/health")
    store.service_path(MLFLOW).write_text(mark)
    try:
        assert with_pages(config).tracking.pages == address
        elsewhere = config.tracking.model_copy(update={"uri": "sqlite:////elsewhere.db"})
        other = config.model_copy(update={"tracking": elsewhere})
        assert with_pages(other) is other
    finally:
        stop(store, MLFLOW)


def test_the_password_goes_with_the_address_of_up_and_no_other(
    config: Config, address: str
) -> None:
    given = make_credentials(Store(config.state.resolve()))
    api = f"{address}/api"

    def sent(url: str, theirs: str | None = None) -> str | None:
        named = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: theirs}
        with temporary_settings(named), prefect_server.prefect_server(config):
            return PREFECT_API_AUTH_STRING.value()

    assert sent(api) == given
    assert sent(api, "mine:own") == "mine:own"
    assert sent("http://127.0.0.1:9/api") is None
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        prefect_server.prefect_server(config),
    ):
        assert PREFECT_API_AUTH_STRING.value() == given


def test_mlflow_brings_the_password_to_the_server_of_up_and_to_no_other(
    config: Config, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both are put back at the end.
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    store = Store(config.state.resolve())
    make_credentials(store, "requant:s3cret")
    store.service_path(PREFECT).rename(store.service_path(MLFLOW))
    try:
        prepare_database("http://127.0.0.1:9", store.root)
        assert not any(name in os.environ for name in names)
        prepare_database(f"{address}/api/", store.root)
        assert [os.environ[name] for name in names] == ["requant", "s3cret"]
        make_credentials(store, "requant:another")
        prepare_database(f"{address}/api", store.root)
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cret"
    finally:
        stop(store, MLFLOW)


@pytest.fixture
def asking() -> Iterator[str]:
    """A server that takes no password."""
    with asking_server("nobody:knows") as url:
        yield url


def test_a_refused_password_is_named_with_the_way_out(config: Config, asking: str) -> None:
    with (
        pytest.raises(
            ConfigError, match=r"PREFECT_API_AUTH_STRING: http\S+/api does not answer wi"
        ),
        temporary_settings({PREFECT_API_URL: f"{asking}/api"}),
        prefect_server.prefect_server(config) as server,
    ):
        server.ready()
        runs_without_deployment()
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        tracking.open_parent(asking, "nights", "flow-1", "tiny", {})


def test_down_stops_a_server_with_another_password(config: Config, asking: str) -> None:
    store = Store(config.state.resolve())
    start(store, Service(PREFECT, ["sleep", "600"], {}, None), seconds=0)
    mark = store.service_path(PREFECT)
    mark.write_text(f"{mark.read_text()}{asking}/health")
    make_credentials(store)
    said = list(stop_machine(store.root))
    assert said[0].startswith("prefect-server: does not answer, or not with the password in the s")
    assert said[1] == "stopped: prefect-server"


def test_a_worker_that_does_not_know_the_password_is_refused(config: Config) -> None:
    store = Store(config.state.resolve())
    refuse_strange_worker(store, "requant:s3cret")
    start(store, Service(WORKER, ["sleep", "600"], {CLIENT_AUTH: "requant:s3cret"}, None), 0)
    try:
        refuse_strange_worker(store, "requant:s3cret")
        with pytest.raises(ConfigError, match=r"worker: was started without the password, or with"):
            refuse_strange_worker(store, "requant:s3cre")
    finally:
        stop(store, WORKER)


@flow(name="incremental-training")
def a_night() -> None: ...


@flow
def of_another_team() -> None: ...


def test_all_pages_are_read_and_no_more() -> None:
    asked = []

    def read(offset: int, of: range) -> list[int]:
        asked.append(offset)
        return list(of[offset : offset + 200])

    assert all_pages(read, of=range(450)) == list(range(450))
    assert asked == [0, 200, 400, 450]


def test_the_runs_of_other_teams_are_theirs() -> None:
    with get_client(sync_client=True) as client:
        runs = [
            client.create_flow_run(made, name=made.name, state=Running())
            for made in (a_night, of_another_team)
        ]
        try:
            assert [run.name for run in runs_without_deployment()] == ["incremental-training"]
        finally:
            for run in runs:
                client.set_flow_run_state(run.id, Completed(), force=True)


def test_down_leaves_the_server_to_a_night_that_needs_it(config: Config) -> None:
    store = Store(config.state.resolve())
    start(store, Service(PREFECT, ["sleep", "600"], {}, None), seconds=0)
    mark = store.service_path(PREFECT)
    mark.write_text(f"{mark.read_text()}{PREFECT_API_URL.value()}/health")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(a_night, name="small of tonight", state=Running())
        with (
            locked(store.night_lock("small"), what=f"the night {run.name!r}"),
            pytest.raises(TransientError, match=r"'small of tonight' \(process .*kill -INT"),
        ):
            list(stop_machine(store.root))
        assert running(store, PREFECT)
        assert "stopped: prefect-server" in list(stop_machine(store.root))
        client.set_flow_run_state(run.id, Completed(), force=True)


def test_a_server_that_goes_away_is_said_to_be_gone(config: Config, address: str) -> None:
    with (
        pytest.raises(TransientError, match=r"server at http.* is gone.*same command again"),
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        prefect_server.prefect_server(config) as server,
    ):
        server.ready()
        stop(Store(config.state.resolve()), PREFECT)
        raise ConnectionError("as Prefect's client says it")


@pytest.mark.parametrize("error", [ConfigError("no version 99"), ValueError("a fault of ours")])
def test_an_error_before_the_server_answers_is_not_blamed_on_it(
    config: Config, error: Exception
) -> None:
    with (
        pytest.raises(type(error), match=str(error)),
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        prefect_server.prefect_server(config) as server,
    ):
        assert server.ours
        raise error


def test_a_mistyped_address_is_said_to_be_one(config: Config) -> None:
    with (
        pytest.raises(ConfigError, match=r"PREFECT_API_URL: no .* at http://127.0.0.1:9/api \("),
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        prefect_server.prefect_server(config) as server,
    ):
        server.ready()


@pytest.fixture
def hanging(config: Config, address: str) -> Iterator[Store]:
    """The store of a server that listens and says nothing."""
    store = Store(config.state.resolve())
    process = running(store, PREFECT)
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    yield store
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def test_down_waits_for_a_server_that_is_slow(hanging: Store) -> None:
    process = running(hanging, PREFECT)
    assert process is not None
    threading.Timer(2.5, os.kill, (process, signal.SIGCONT)).start()
    # This one knows no flow runs: it is asked for them, where it was taken to hang before.
    with pytest.raises(PrefectHTTPStatusError, match="501"):
        list(stop_machine(hanging.root))
    assert running(hanging, PREFECT)


def test_down_stops_a_server_that_hangs_unless_a_night_may_need_it(
    hanging: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(services, "STOP_SECONDS", 0.5)
    with locked(hanging.night_lock("small"), what="the night 'small of tonight'"):
        with pytest.raises(TransientError, match=r"of tonight' .* it may need .*kill -INT"):
            list(stop_machine(hanging.root))
        assert running(hanging, PREFECT)
    said = list(stop_machine(hanging.root))
    assert said[0].startswith("prefect-server: does not answer, or not with the password in the s")
    assert said[1] == "stopped: prefect-server"


def test_down_stops_a_night_of_its_worker_with_a_server_that_hangs(
    hanging: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(services, "STOP_SECONDS", 0.5)
    code = "import sys, time; from pathlib import Path; from requant.store import locked\n"
    code += "with locked(Path(sys.argv[1]), what='the night of a worker'):\n"
    code += "    print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(hanging.night_lock("small"))]
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": "of-a-worker"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as night:
        try:
            assert night.stdout is not None
            assert night.stdout.readline() == "held\n"
            assert list(stop_machine(hanging.root))[1] == "stopped: prefect-server"
        finally:
            night.kill()


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = free.getsockname()[1], taken.getsockname()[1]
        free.close()
        with pytest.raises(ConfigError, match=f"--mlflow-port {ports[1]}: another program listen"):
            next(machine.start_machine(tmp_path, tmp_path / "state", *ports, 1, 1))
    assert not (tmp_path / "state").exists()


def test_an_installation_without_the_door_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_descriptions, "APP", "not-installed")
    with pytest.raises(ConfigError, match=r"installed by an earlier version.*`make .venv/ready`"):
        service_descriptions.mlflow_service(tmp_path, "sqlite:///x.db", 5000, "requant:s3cret")
