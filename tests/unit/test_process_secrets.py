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

from requant.config import Config
from requant.credentials import SECRET_VARIABLES
from requant.errors import ConfigError
from tasks.secrets import hiding, known_secrets, redactor_of, short_secrets, variables_of
from tasks.tracking.connection import prepare_database
from tests.support.chain import micro_config

OF_SERVERS = {
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "PREFECT_SERVER_API_AUTH_STRING",
    "REQUANT_MLFLOW_AUTH",
}


def of_database(state: Path, *urls: str, enabled: bool = True) -> Config:
    """Configure a line that reads the rows of some databases."""
    sources = [
        {"kind": "sql", "name": f"rows-{number}", "url": url, "query": "SELECT 1"}
        for number, url in enumerate(urls)
    ]
    more = {"prepare_data": {"source": {"kind": "collected"}}} if enabled else {}
    return micro_config(state, collect_rows={"enabled": enabled, "sources": sources}, **more)


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


def test_a_secret_that_cannot_be_hidden_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_URL", "postgresql://a-long-user:sh%20rt@a-long-host/rows")
    plain, reading = micro_config(tmp_path), of_database(tmp_path, "env:ROWS_URL")
    assert short_secrets(plain) == []
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "short")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "a-long-user:short")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    names = ("MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING")
    assert short_secrets(reading) == [
        f"{name}: has fewer than 8 characters and is not kept out of logs; take a longer one"
        for name in (*names, "the password in ROWS_URL")
    ]
    assert len(short_secrets(plain)) == 2


def test_an_address_that_is_none_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tracking.uri: is neither http\(s\):// nor") as caught:
        prepare_database("hunter2hunter2", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_process_of_a_stage_gets_the_secrets_of_the_hub_alone(tmp_path: Path) -> None:
    argv = ["./deploy.sh"]
    names = {"A": "env:DEPLOY_TOKEN", "B": "env:HF_TOKEN", "C": "block:other"}
    action = {"kind": "command", "argv": argv, "secrets": names}
    config = micro_config(tmp_path, deploy={"action": action})
    assert variables_of(config, "train_adapter") == {"DEPLOY_TOKEN", *OF_SERVERS}


def test_the_address_of_a_database_is_given_to_who_reads_it_alone(tmp_path: Path) -> None:
    config = of_database(tmp_path, "env:ROWS_URL", "env:ROWS_URL", "postgresql://me@host/rows")
    assert variables_of(config, "collect_rows") == OF_SERVERS
    for stage in ("extend_ledger", "train_adapter", "evaluate"):
        assert variables_of(config, stage) == {"ROWS_URL", *OF_SERVERS}


def test_the_address_of_a_database_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "postgresql://me:of%2Fthe-rows@a-long-host/all_rows?sslpassword=of-the-key"
    monkeypatch.setenv("ROWS_URL", address)
    redact = redactor_of(of_database(tmp_path, "env:ROWS_URL"))
    for word in (address, "of/the-rows", "of%2Fthe-rows", "of-the-key"):
        assert redact(f"refused: {word}.") == "refused: ***.", word
    harmless = "me at a-long-host, all_rows: sslpassword"
    assert redact(harmless) == harmless
    # Who reads none has no such secret.
    off = of_database(tmp_path, "env:ROWS_URL", enabled=False)
    assert redactor_of(off)("of/the-rows") == "of/the-rows"
