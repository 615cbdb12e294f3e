"""Nights on a real Prefect server and worker: scheduled, promoted, deployed, told of."""

import http.server
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from requant.evaluation.artifact import CHAIN
from requant.store import Store, all_records
from tests.e2e.machine import Machine, eventually
from tests.support.browser import browser_window, follow, keep
from tests.support.users import as_nobody, only_root

SERVICES = ("prefect-server", "mlflow-server", "worker")


@pytest.fixture(scope="module")
def first_night(machine: Machine) -> dict[str, Any]:
    """The deployment as prefect.yaml describes it, run once to its end."""
    return machine.wait(machine.start(), "COMPLETED")


# -------------------------------------------------------------------- deployments


def without_stamps(item: Any) -> Any:
    if isinstance(item, dict):
        stamps = {"id", "created", "updated", "updated_by", "created_by", "version_id", "version"}
        stamps |= {"last_polled", "status", "version_info", "current_version"}
        return {
            name: without_stamps(value)
            for name, value in item.items()
            if name not in stamps and not name.endswith("_id")
        }
    if isinstance(item, list):
        # Sets of words come back in any order.
        return sorted((without_stamps(each) for each in item), key=json.dumps)
    return item


def test_deploying_twice_changes_nothing(machine: Machine) -> None:
    def everything() -> Any:
        automations = machine.post("automations/filter", {})
        for automation in automations:
            for action in automation["actions"]:
                action.pop("deployment_id", None)
            automation.pop("owner_resource", None)
        return without_stamps({"deployments": machine.deployments(), "automations": automations})

    before = everything()
    assert {"nightly", "deploy-model", "maintenance"} == before["deployments"].keys()
    assert len(before["automations"]) == 2
    ids = {name: item["id"] for name, item in machine.deployments().items()}
    machine.up()
    assert everything() == before
    assert {name: item["id"] for name, item in machine.deployments().items()} == ids


@pytest.mark.parametrize("name", ["nightly", "maintenance"])
def test_scheduled_runs_exist(machine: Machine, name: str) -> None:
    def scheduled() -> list[dict[str, Any]]:
        return [run for run in machine.runs(name) if run["auto_scheduled"]]

    runs = eventually("runs are scheduled", scheduled)
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    hours = {run["expected_start_time"][11:16] for run in runs}
    assert hours == {"02:00" if name == "nightly" else "12:00"}


def test_the_parameters_are_the_whole_configuration(machine: Machine) -> None:
    nightly = machine.deployments()["nightly"]
    assert nightly["parameters"]["config"]["train_adapter"]["rank"] == 4
    schema = nightly["parameter_openapi_schema"]
    assert "rows of A and columns of B" in json.dumps(schema)
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert nightly["global_concurrency_limit"]["limit"] == 1


def test_the_servers_listen_on_the_loopback_address_only(machine: Machine) -> None:
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [local.split(":") for _, local, _, state, *_ in sockets if state == "0A"]
    for port in (machine.prefect_port, machine.mlflow_port):
        addresses = {address for address, number in listening if int(number, 16) == port}
        assert addresses == {"0100007F"}


# -------------------------------------------------------------------- who may reach it


def prefect_routes() -> tuple[set[tuple[str, str]], set[str]]:
    """List method and path of all the API answers to, from its own tables; and its sockets."""
    from fastapi.routing import APIRoute, APIWebSocketRoute
    from prefect.server.api.server import API_ROUTERS

    routes = [route for router in API_ROUTERS for route in router.routes]
    found = {
        (method, route.path)
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    sockets = {route.path for route in routes if isinstance(route, APIWebSocketRoute)}
    some_id = "00000000-0000-0000-0000-000000000000"
    filled = {(method, re.sub(r"{[^}]*}", some_id, path)) for method, path in found}
    return filled, {re.sub(r"{[^}]*}", some_id, path) for path in sockets}


def test_without_the_password_no_route_of_prefect_answers(machine: Machine) -> None:
    asked, sockets = prefect_routes()
    assert len(asked) > 180
    assert ("POST", "/block_documents/filter") in asked
    asked |= {("GET", path) for path in ("/version", "/docs", "/openapi.json", "/no-such-route")}
    answers = {
        f"{method} {path}": machine.client.request(method, machine.api + path).status_code
        for method, path in sorted(asked)
    }
    assert {asked for asked, status in answers.items() if status != 401} == {"GET /ready"}
    assert machine.client.get(f"{machine.api}/health").status_code == 200
    # As does every method that has the password.
    assert machine.post("block_documents/filter", {}) == []

    assert {"/events/in", "/events/out", "/logs/out"} <= sockets
    address = machine.api.replace("http", "ws", 1)
    for path in sockets:
        with pytest.raises(InvalidStatus, match="403"), connect(address + path):
            pass
        with connect(address + path, subprotocols=[Subprotocol("prefect")]) as socket:
            socket.send(json.dumps({"type": "auth", "token": "requant:wrong"}))
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=30)


def test_all_in_the_state_folder_is_for_its_owner_alone(
    machine: Machine, first_night: dict[str, Any]
) -> None:
    eventually("the first model is deployed", lambda: deployed(machine))
    found = [machine.state, *machine.state.rglob("*")]
    for name in ("mlflow.db", "prefect/prefect.db", "logs/worker.log", "access/password"):
        assert machine.state / name in found
    assert [path for path in found if path.lstat().st_mode & 0o077] == []
    # It stays on no command line, and in no log, database or page.
    _, _, password = machine.password.partition(":")
    known = {machine.state / "access" / name for name in ("password", "environment", "login.html")}
    holding = {path for path in found if path.is_file() and password.encode() in path.read_bytes()}
    assert holding == known
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert password.encode() not in path.read_bytes()
    # What serves is outside of it, and as readable as the folder that a person named.
    weights = machine.folder / "served/current/model.safetensors"
    assert weights.stat().st_mode & 0o044


@only_root
def test_another_user_of_the_machine_gets_nothing(
    machine: Machine, first_night: dict[str, Any]
) -> None:
    servers = [int((machine.state / "services" / name).read_text().split()[0]) for name in SERVICES]
    with as_nobody(machine.state):
        for path in (machine.state, *(Path(f"/proc/{pid}/environ") for pid in servers)):
            with pytest.raises(PermissionError):
                list(path.iterdir()) if path.is_dir() else path.read_bytes()


def test_a_browser_logs_in_by_the_links(machine: Machine, first_night: dict[str, Any]) -> None:
    with browser_window() as page:
        page.goto(f"http://127.0.0.1:{machine.prefect_port}")
        page.get_by_role("button", name="Login").wait_for()
        page.goto((machine.state / "access/login.html").as_uri())
        keep(page, "log-in")
        prefect = follow(page, "Prefect")
        prefect.get_by_role("link", name="Runs").first.click()
        prefect.get_by_text(first_night["name"]).first.wait_for()
        keep(prefect, "logged-in-prefect")
        mlflow = follow(page, "MLflow")
        mlflow.get_by_role("link", name="requant").first.wait_for()
        keep(mlflow, "logged-in-mlflow")
        assert mlflow.url == f"http://127.0.0.1:{machine.mlflow_port}/"


# -------------------------------------------------------------------- promotion and deployment


def deployed(machine: Machine) -> dict[str, Any] | None:
    path = machine.state / "deployments" / "tiny.json"
    return json.loads(path.read_text())["content"] if path.exists() else None


def test_promotion_deploys_and_rollback_deploys_what_was_before(
    machine: Machine, first_night: dict[str, Any]
) -> None:
    served = machine.folder / "served" / "current"
    first = eventually("the first model is deployed", lambda: deployed(machine))
    assert served.resolve().name == first["digest"]
    assert (served / "model.safetensors").exists()

    run = machine.start(machine.config(requantize_gptq={"damp_percent": 0.1}))
    machine.wait(run, "COMPLETED")
    second = eventually(
        "the second model is deployed",
        lambda: (now := deployed(machine)) and now["version"] == 2 and now,
    )
    assert served.resolve().name == second["digest"] != first["digest"]
    client = MlflowClient(machine.mlflow)
    assert client.get_model_version_by_alias("tiny", "champion").version == "2"
    executed = [record.stage for record in all_records(Store(machine.state))]
    assert executed.count("train_adapter") == 1

    said = machine.requant("rollback", "configs/tiny.yaml")
    assert "tiny: version 1" in said
    assert "model.promoted is sent: deploy-model/deploy-model on http" in said
    eventually("the first is deployed again", lambda: served.resolve().name == first["digest"])
    eventually("that is known", lambda: "deployed" in client.get_model_version("tiny", "1").tags)
    assert client.get_model_version_by_alias("tiny", "champion").version == "1"
    assert "nothing to roll back" not in said
    refused = machine.requant("rollback", "configs/tiny.yaml", fails=2)
    assert "version 1 is the first champion" in refused

    said = machine.requant(
        "promote", "configs/tiny.yaml", "--version", 2, "--reason", "a person wants it"
    )
    assert "tiny: version 2" in said
    eventually("the second is deployed", lambda: served.resolve().name == second["digest"])
    eventually("that is known", lambda: "deployed" in client.get_model_version("tiny", "2").tags)
    assert "version 2 is deployed already" in machine.requant("deploy", "configs/tiny.yaml")


def test_a_failed_run_of_no_deployment_says_what_goes_on(
    machine: Machine, first_night: dict[str, Any]
) -> None:
    strict = ("--set", "merge_fp16.trained_max_kl=1e-9")
    said = machine.requant("run", "configs/tiny.yaml", *strict, fails=1)
    assert "Prefect cannot retry this flow run: it is of no deployment" in said
    assert f"http://127.0.0.1:{machine.prefect_port}/runs/flow-run/" in said
    assert f"http://127.0.0.1:{machine.mlflow_port}/#/experiments/" in said
    again = f"`requant run configs/tiny.yaml {' '.join(strict)}` goes on from what is valid"
    assert f"when the cause is mended, {again}" in said


def test_a_person_sees_the_night(machine: Machine, first_night: dict[str, Any]) -> None:
    assert first_night["name"].startswith("tiny 20")
    chosen = {"flow_runs": {"id": {"any_": [first_night["id"]]}}}
    artifacts = {item["key"]: item for item in machine.post("artifacts/filter", chosen)}
    page = artifacts["night-tiny"]["data"]
    assert "| promote | done |" in page
    assert f"[the night in MLflow](http://127.0.0.1:{machine.mlflow_port}/#/experiments/" in page
    scores = json.loads(artifacts["scores-tiny"]["data"])
    assert {"task", "metric", *CHAIN} == scores[0].keys()
    ledger = artifacts["survival-tiny"]["data"]
    assert "| requantize_gptq |" in ledger
    assert "- old_perplexity: " in ledger
    tasks = machine.post("task_runs/filter", chosen)
    assert any(task["name"].startswith("merge_fp16-") for task in tasks)


# -------------------------------------------------------------------- who is told


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], Any]]]]:
    """A web server that remembers what it was sent."""
    heard: list[tuple[dict[str, str], Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((dict(self.headers), json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", heard
    server.shutdown()


BLOCK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
text = "{{{{subject}}}}: {{{{body}}}}"
Webhook(name="team", url={url!r}, json_data={{"text": text}}).save("team")
"""


def test_a_failure_is_told_through_a_block(
    machine: Machine, first_night: dict[str, Any], receiver: Any
) -> None:
    url, heard = receiver
    machine.command([sys.executable, "-c", BLOCK.format(url=url)])
    assert "tell of failures" in machine.sourced("notify", "custom-webhook/team")
    time.sleep(3)
    run = machine.start(machine.config(merge_fp16={"trained_max_kl": 1e-9}))
    machine.wait(run, "FAILED")
    texts = eventually("somebody is told", lambda: [body["text"] for _, body in heard])
    assert any("requant: a run failed" in text and "tiny 20" in text for text in texts)
    assert any("give `requant run` again" in text for text in texts)


def test_a_secret_goes_to_the_server_and_nowhere_else(
    machine: Machine, first_night: dict[str, Any], receiver: Any
) -> None:
    url, heard = receiver
    document = machine.config()
    document["deploy"] = {"action": {"kind": "post", "url": url, "token": "env:TOKEN"}}
    (machine.folder / "configs" / "post.yaml").write_text(yaml.safe_dump(document))
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, '.')\n"
        "from requant.config.loading import load_config\n"
        "from flows.deploy_model import deploy_model\n"
        "for _ in range(2):\n"
        "    deploy_model(load_config(Path('configs/post.yaml')))\n"
    )
    said = machine.command([sys.executable, "-c", code])
    assert "is deployed already" in said
    ((headers, body),) = heard
    assert headers["Authorization"] == "Bearer s3cret-of-the-test"
    assert body["model"] == "tiny"
    assert "s3cret" not in said
    for path in machine.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"s3cret-of-the-test" not in path.read_bytes(), path
