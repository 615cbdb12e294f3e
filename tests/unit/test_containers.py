"""compose.yaml describes what `make up` starts: no engine runs here, but its parts must fit."""

import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.tracking.protected import APP, CREDENTIALS, create_app

SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_needs_is_there(name: str) -> None:
    service = SERVICES[name]
    for needed, how in service.get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[needed]
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_the_gpu_goes_to_a_service_there_is() -> None:
    assert GPU["services"].keys() == {"worker"} <= SERVICES.keys()


def test_nothing_secret_is_in_it_and_none_has_a_default() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for secret in ("POSTGRES_PASSWORD", "PREFECT_AUTH", "MLFLOW_PASSWORD"):
        assert f"${{{secret}:?" in text
        assert f"${{{secret}:-" not in text
        for service in SERVICES.values():
            # Every user of the host reads the command lines of its containers.
            assert secret not in str(service.get("command"))


def test_both_servers_ask_for_a_password_that_who_needs_them_has() -> None:
    mlflow, worker = SERVICES["mlflow"], SERVICES["worker"]["environment"]
    assert f"--app-name={APP}" in mlflow["command"]
    assert mlflow["environment"][CREDENTIALS].startswith(
        f"{worker['MLFLOW_TRACKING_USERNAME']}:${{MLFLOW_PASSWORD:?"
    )
    assert worker["MLFLOW_TRACKING_PASSWORD"] == "${MLFLOW_PASSWORD}"
    assert SERVICES["prefect"]["environment"][SERVER_AUTH] == "${PREFECT_AUTH}"
    for name in ("setup", "worker"):
        assert SERVICES[name]["environment"].items() >= worker.items()


def test_the_app_of_mlflows_server_is_found_from_the_projects_folder() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["mlflow.app"][APP].partition(":")
    assert getattr(importlib.import_module(module), name) is create_app
    path = SERVICES["mlflow"]["environment"]["PYTHONPATH"]
    assert f"WORKDIR {path}" in (ROOT / "Dockerfile").read_text()


def test_the_image_takes_what_the_deployments_need_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert {f"!{path}" for path in copied} <= set(kept)
    assert {"prefect.yaml", "configs", "flows", "tasks", "src"} <= copied
    assert all((ROOT / path).exists() for path in copied)
    assert "USER 1000" in lines
