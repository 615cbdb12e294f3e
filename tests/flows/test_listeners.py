"""Whether a promotion deploys anything, and what to do where it does not."""

from pathlib import Path

import pytest
import yaml
from chain import MICRO
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.listeners import listeners_of, outlook
from tasks.machine import set_up_server
from tasks.server_setup import POOL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_lines(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The deployments of prefect.yaml for two model lines, on the server of the harness."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (template,) = (item for item in project["deployments"] if item["name"] == "deploy-model")
    project["deployments"] = []
    for line in ("small", "small.v2"):
        (folder / f"{line}.yaml").write_text(
            yaml.safe_dump({**yaml.safe_load(MICRO), "name": line})
        )
        (step,) = template["build"]
        (arguments,) = step.values()
        build = [{"flows.steps.read_config": {**arguments, "path": f"{line}.yaml"}}]
        project["deployments"].append({**template, "name": f"deploy-{line}", "build": build})
    (folder / "prefect.yaml").write_text(yaml.safe_dump(project))
    set_up_server(folder, 1, 1, {"PREFECT_API_URL": str(PREFECT_API_URL.value())})


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


def test_a_server_that_does_not_say_who_listens_fails_nothing() -> None:
    with temporary_settings(
        {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    ):
        said = outlook("small", "requant deploy mine.yaml")
    assert said.startswith(
        "model.promoted is sent, but http://127.0.0.1:9 does not say who listens ("
    )
    assert said.endswith("where nothing does, `requant deploy mine.yaml` deploys it here and now")
