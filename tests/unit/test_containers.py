"""compose.yaml describes what `make up` starts: no engine runs here, but its parts must fit."""

from pathlib import Path
from typing import Any

import pytest
import yaml

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
    for secret in ("POSTGRES_PASSWORD", "PREFECT_AUTH"):
        assert f"${{{secret}:?" in text
        assert f"${{{secret}:-" not in text


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
