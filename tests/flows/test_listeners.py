"""Whether a promotion deploys anything, and what to do where it does not."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from requant.errors import TerminalError
from tasks.servers.listeners import listeners_of, outlook
from tasks.servers.machine import set_up_server
from tasks.servers.setup import POOL
from tests.support.chain import MICRO
from tests.support.commands import requant

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The deployments of prefect.yaml for two model lines, on the server of the harness."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (template,) = (item for item in project["deployments"] if item["name"] == "deploy-model")
    project["deployments"] = []
    missing = {"prepare_data": {"source": {"kind": "files", "train": ["none.jsonl"]}}}
    for line in ("small", "small.v2"):
        (folder / f"{line}.yaml").write_text(
            yaml.safe_dump({**yaml.safe_load(MICRO), "name": line, **missing})
        )
        (step,) = template["build"]
        (arguments,) = step.values()
        build = [{"flows.steps.read_config": {**arguments, "path": f"{line}.yaml"}}]
        project["deployments"].append({**template, "name": f"deploy-{line}", "build": build})
    (folder / "prefect.yaml").write_text(yaml.safe_dump(project))
    said = set_up_server(folder, 1, 1, {"PREFECT_API_URL": str(PREFECT_API_URL.value())})
    # What a night would be refused for is known as soon as it is deployed.
    assert said == [
        "warning: a night started now would be refused: prepare_data.source.train.0: none.jsonl is "
        "not a file; give an existing one"
    ]
    yield
    with get_client(sync_client=True) as client:
        # The server is the session's: what waits for a slot waits in every file's tests.
        for limit in client.read_concurrency_limits(limit=100, offset=0):
            client.delete_concurrency_limit_by_tag(limit.tag)


def test_each_line_starts_its_own_deployment_alone(two_lines: None) -> None:
    assert [item.name for item in listeners_of("small")] == ["deploy-model/deploy-small"]
    assert [item.name for item in listeners_of("small.v2")] == ["deploy-model/deploy-small.v2"]
    said = outlook("small.v", "requant deploy mine.yaml")
    assert said.startswith("nothing deploys it: no deployment on http://")
    assert "listens for model.promoted of small.v." in said
    assert "`requant deploy mine.yaml` deploys it here and now" in said


def test_what_keeps_a_deployment_from_starting_is_named(two_lines: None) -> None:
    assert "deploy-model/deploy-small" in outlook("small")
    assert "but no worker looks for work in its pool 'requant'" in outlook("small")
    with get_client(sync_client=True) as client:
        # As a worker asks.
        client.get_scheduled_flow_runs_for_work_pool(POOL)
        assert "deploy-model/deploy-small on http" in outlook("small")
        assert outlook("small").startswith("model.promoted is sent: ")
        hears = {
            item.trigger.match.root["prefect.resource.id"]: item
            for item in client.read_automations()
        }
        client.pause_automation(hears["model.small"].id)
        assert "its automation is switched off" in outlook("small")


def test_a_block_through_which_nothing_would_arrive_is_refused_by_name() -> None:
    Secret(value="nothing to send through").save("deaf")
    for block, text in {
        "custom-webhook/nobody": "is not on the server",
        "secret/deaf": "is no notification block, so nothing would arrive",
    }.items():
        refused = " ".join(requant("notify", block, fails=2).split())
        assert f"block '{block}': {text}" in refused


def test_a_server_that_does_not_say_who_listens_fails_nothing() -> None:
    with temporary_settings(
        {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    ):
        said = outlook("small", "requant deploy mine.yaml")
    assert said.startswith(
        "model.promoted is sent, but http://127.0.0.1:9 does not say who listens ("
    )
    assert said.endswith("where nothing does, `requant deploy mine.yaml` deploys it here and now")


class NewerServer(BaseHTTPRequestHandler):
    """Answers in a form that this client's models refuse."""

    def do_GET(self) -> None:
        # So says a server that wants no token with what it is sent.
        self.send_error(404)

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'[{"name": "of next year", "trigger": {"type": "dream"}}]')


def test_a_server_that_answers_in_another_form_fails_nothing() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), NewerServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            said = outlook("small", "requant deploy mine.yaml")
        server.shutdown()
    assert "does not say who listens (ValidationError: " in said
    assert said.endswith("where nothing does, `requant deploy mine.yaml` deploys it here and now")


def test_a_configuration_that_cannot_work_is_refused_without_a_traceback(tmp_path: Path) -> None:
    for name in ("flows", "tasks", "prefect.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "configs").mkdir()
    document = {**yaml.safe_load(MICRO), "seed": -1}
    (tmp_path / "configs/tiny.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(TerminalError) as caught:
        set_up_server(tmp_path, 1, 1, {"PREFECT_API_URL": str(PREFECT_API_URL.value())})
    said = str(caught.value)
    assert said.startswith("nothing is deployed from prefect.yaml: configs/tiny.yaml: ")
    assert "seed" in said
    assert "Traceback" not in said
