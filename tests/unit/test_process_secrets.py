"""The secrets that MLflow, Prefect and the hub have are known wherever they found them."""

from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from requant.credentials import SECRET_VARIABLES
from requant.errors import ConfigError
from tasks.secrets import hiding, known_secrets, short_secrets, variables_of
from tasks.tracking.connection import prepare_database
from tests.support.chain import micro_config


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


def test_what_prefect_has_from_its_profile_is_hidden(tmp_path: Path) -> None:
    database = "postgresql+asyncpg://me:of%2Fthe-database@db/prefect"
    settings = {
        PREFECT_API_KEY: "pnu_0123456789",
        PREFECT_API_AUTH_STRING: "admin:of-the-client",
        PREFECT_SERVER_API_AUTH_STRING: "admin:of-the-server",
        PREFECT_SERVER_DATABASE_CONNECTION_URL: database,
    }
    words = ["pnu_0123456789", "of-the-client", "of-the-server", "of/the-database"]
    with temporary_settings(settings):
        redact = hiding(known_secrets(tmp_path))
    for word in words:
        assert redact(f"401 for {word}.") == "401 for ***.", word
    assert redact("db/prefect is away, admin") == "db/prefect is away, admin"
    bare = hiding(known_secrets(tmp_path))
    assert bare(" ".join(words)) == " ".join(words)
    assert bare.reach == 0 < redact.reach


def test_the_login_of_the_hub_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_fromTheLogin\n")
    assert hiding(known_secrets(tmp_path))("Bearer hf_fromTheLogin") == "Bearer ***"


def test_a_secret_that_cannot_be_hidden_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert short_secrets() == []
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "short")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "a-long-user:short")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    assert short_secrets() == [
        f"{name}: has fewer than 8 characters and is not kept out of logs; take a longer one"
        for name in ("MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING")
    ]


def test_an_address_that_is_none_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tracking.uri: is neither http\(s\):// nor") as caught:
        prepare_database("hunter2hunter2", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_process_of_a_stage_gets_the_secrets_of_the_hub_alone(tmp_path: Path) -> None:
    argv = ["./deploy.sh"]
    names = {"A": "env:DEPLOY_TOKEN", "B": "env:HF_TOKEN", "C": "block:other"}
    action = {"kind": "command", "argv": argv, "secrets": names}
    config = micro_config(tmp_path, deploy={"action": action})
    assert variables_of(config) == {
        "DEPLOY_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_API_KEY",
        "PREFECT_SERVER_API_AUTH_STRING",
        "REQUANT_MLFLOW_AUTH",
    }
