"""Nights on a real Prefect server and worker: scheduled, deployed, killed, cancelled, retried."""

import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from requant.services import stop
from requant.store import Store, all_records
from tests.e2e.machine import Machine, eventually, kill, make_machine

STEPS = 160
CHECKPOINT = 10
LONG = {
    "train_adapter": {
        "optimisation": {
            "max_steps": STEPS,
            "batch_size": 16,
            "max_length": 96,
            "checkpoint_steps": CHECKPOINT,
        }
    },
    "merge_fp16": {"trained_max_kl": 5.0},
    "continue_train": {"enabled": False},
    "requantize_gptq": {"enabled": False},
    "evaluate": {"enabled": False},
    "promote": {"enabled": False},
}
"""A night whose training takes long enough to be killed in, and that ends soon after."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = make_machine(tmp_path_factory.mktemp("machine"))
    said = machine.up()
    assert f"Prefect:  http://127.0.0.1:{machine.prefect_port}" in said
    assert f"MLflow:   http://127.0.0.1:{machine.mlflow_port}" in said
    yield machine
    assert machine.down().strip() == "stopped: worker, mlflow-server, prefect-server"
    assert "nothing was running" in machine.down()


@pytest.fixture(scope="module")
def first_night(machine: Machine) -> dict[str, Any]:
    """The deployment as prefect.yaml describes it, run once to its end."""
    return machine.wait(machine.start(), "COMPLETED")


def long_night(machine: Machine, seed: int, launcher: str = "inline", **more: Any) -> str:
    """Start a night whose training has not been done yet, and wait until it trains."""
    config = machine.config(**LONG, **more)
    config["train_adapter"]["alpha"] = 8 + seed
    config["runtime"]["launcher"] = launcher
    run = machine.start(config)
    machine.wait_for_log(run, f"for {STEPS} steps")
    return run


def wait_for_checkpoint(machine: Machine, run: str) -> int:
    return max(eventually("a checkpoint", lambda: machine.checkpoints(run)))


def resumed_at(machine: Machine, run: str) -> int:
    """Return the step a training went on from, as its log says."""
    log = machine.log(run)
    return int(log.rpartition("resuming from checkpoint-")[2].split()[0])


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


# -------------------------------------------------------------------- promotion and deployment


def deployed(machine: Machine) -> dict[str, Any] | None:
    path = machine.state / "deployments" / "tiny.json"
    return json.loads(path.read_text()) if path.exists() else None


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
    client = MlflowClient(f"http://127.0.0.1:{machine.mlflow_port}")
    assert client.get_model_version_by_alias("tiny", "champion").version == "2"
    executed = [record.stage for record in all_records(Store(machine.state))]
    assert executed.count("train_adapter") == 1

    said = machine.requant("rollback", "configs/tiny.yaml")
    assert "tiny: version 1" in said
    assert "deploy-model starts on the server" in said
    eventually("the first is deployed again", lambda: served.resolve().name == first["digest"])
    eventually("that is known", lambda: "deployed" in client.get_model_version("tiny", "1").tags)
    assert client.get_model_version_by_alias("tiny", "champion").version == "1"
    assert "nothing to roll back" not in said
    refused = machine.requant("rollback", "configs/tiny.yaml", fails=2)
    assert "version 1 is the first champion" in refused

    said = machine.requant("promote", "configs/tiny.yaml", "--version", 2)
    assert "tiny: version 2" in said
    eventually("the second is deployed", lambda: served.resolve().name == second["digest"])


def test_a_person_sees_the_night(machine: Machine, first_night: dict[str, Any]) -> None:
    assert first_night["name"].startswith("tiny 20")
    chosen = {"flow_runs": {"id": {"any_": [first_night["id"]]}}}
    artifacts = {item["key"]: item for item in machine.post("artifacts/filter", chosen)}
    page = artifacts["night-tiny"]["data"]
    assert "| promote | done |" in page
    assert f"[the night in MLflow](http://127.0.0.1:{machine.mlflow_port}/#/experiments/" in page
    scores = json.loads(artifacts["scores-tiny"]["data"])
    assert {"task", "metric", "base", "merged", "continued", "requantized"} == scores[0].keys()
    tasks = machine.post("task_runs/filter", chosen)
    assert any(task["name"].startswith("merge_fp16-") for task in tasks)


# -------------------------------------------------------------------- nights that must not run


def test_a_second_night_is_cancelled_and_cancelling_leaves_no_orphan(machine: Machine) -> None:
    run = long_night(machine, 1, launcher="process")
    assert len(machine.stage_processes()) == 1
    second = machine.wait(machine.start(), "CANCELLED")
    assert "concurrency limit" in second["state"]["message"].lower()
    started = time.monotonic()
    machine.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    machine.wait(run, "CANCELLED", seconds=30)
    assert not machine.stage_processes()
    assert time.monotonic() - started < 10


def test_an_overdue_night_is_skipped_with_the_reason(machine: Machine) -> None:
    run = machine.wait(machine.start(hours_ago=5), "CANCELLED")
    assert "later than runtime.max_late_minutes=180" in run["state"]["message"]


# -------------------------------------------------------------------- what is killed goes on


def test_a_killed_stage_goes_on_and_a_server_that_restarts_is_waited_for(machine: Machine) -> None:
    run = long_night(machine, 2, launcher="process")
    last = wait_for_checkpoint(machine, run)
    kill(*machine.stage_processes())
    machine.wait_for_log(run, "resuming from checkpoint-")
    assert stop(Store(machine.state), "prefect-server")
    assert "prefect-server: started" in machine.up()
    assert machine.wait(run, "COMPLETED")["run_count"] == 1
    assert "most likely the machine ran out of memory" in machine.log(run)
    assert resumed_at(machine, run) >= last
    logs = sorted(path.name for path in (machine.state / "logs" / run).glob("train_adapter*"))
    assert logs == ["train_adapter.1.log", "train_adapter.2.log"]


def test_a_killed_flow_is_crashed_and_its_retry_goes_on(machine: Machine) -> None:
    run = long_night(machine, 3)
    last = wait_for_checkpoint(machine, run)
    kill(machine.flow_process())
    machine.wait(run, "CRASHED", seconds=60)
    # The worker reports the same end twice, and the second report would undo a retry before it.
    time.sleep(5)
    machine.retry(run)
    machine.wait(run, "COMPLETED")
    # At most one checkpoint interval is done again.
    assert resumed_at(machine, run) >= last


def test_a_dead_machine_is_noticed_and_the_night_goes_on(machine: Machine) -> None:
    run = long_night(machine, 5)
    last = wait_for_checkpoint(machine, run)
    kill(machine.worker(), machine.flow_process())
    crashed = machine.wait(run, "CRASHED", seconds=200)
    assert "no heartbeat for 90 s" in crashed["state"]["message"]
    assert "worker: started" in machine.up()
    machine.retry(run)
    machine.wait(run, "COMPLETED")
    assert resumed_at(machine, run) >= last


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
    refused = machine.requant("notify", "custom-webhook/nobody", fails=2)
    assert "block 'custom-webhook/nobody': is not on the server" in refused
    assert "tell of failures" in machine.requant("notify", "custom-webhook/team")
    time.sleep(3)
    run = machine.start(machine.config(merge_fp16={"trained_max_kl": 1e-9}))
    machine.wait(run, "FAILED")
    texts = eventually("somebody is told", lambda: [body["text"] for _, body in heard])
    assert any("requant: a run failed" in text and "tiny 20" in text for text in texts)


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
        "deploy_model(load_config(Path('configs/post.yaml')))\n"
    )
    said = machine.command([sys.executable, "-c", code])
    assert "is deployed already" in machine.command([sys.executable, "-c", code])
    ((headers, body),) = heard
    assert headers["Authorization"] == "Bearer s3cret-of-the-test"
    assert body["model"] == "tiny"
    assert "s3cret" not in said
    for path in machine.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"s3cret-of-the-test" not in path.read_bytes(), path
