"""Secrets that a deployment needs are looked for before the night, in Prefect's blocks too."""

from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from flows.incremental_training import incremental_training
from requant.errors import ConfigError
from requant.store import Store
from tasks.nightly.preflight import secret_problems
from tasks.secrets import redactor_of, resolve_secret
from tasks.servers.access import make_credentials
from tests.support.chain import micro_config

ACTION = {"kind": "post", "url": "http://127.0.0.1:9", "token": "block:requant-late"}

NAMED = {"NAMED": "env:NAMED", "MISSING": "env:MISSING"}


def test_a_block_that_does_not_exist_ends_the_night_before_its_first_stage(tmp_path: Path) -> None:
    config = micro_config(tmp_path / "state", deploy={"action": ACTION})
    missing = "deploy.action: secret 'block:requant-late': Prefect has no Secret block"
    assert [str(problem)[: len(missing)] for problem in secret_problems(config)] == [missing]
    state = incremental_training(config, return_state=True)
    assert state.is_failed()
    assert missing in str(state.message)
    assert not list((tmp_path / "state").glob("actions/*"))
    Secret(value="a long word").save("requant-late")
    assert list(secret_problems(config)) == []
    found = resolve_secret("block:requant-late")
    assert found.get_secret_value() == "a long word"
    assert "word" not in f"{found!r} {found} {[found]}"
    for value in ("", " \n"):
        Secret(value=value).save("requant-late", overwrite=True)
        with pytest.raises(ConfigError, match=r"block 'requant-late' is empty; make it with"):
            resolve_secret("block:requant-late")
    Secret(value={"user": "hunter2hunter2"}).save("requant-late", overwrite=True)
    with pytest.raises(ConfigError, match=r"block 'requant-late' holds no text; make it") as caught:
        resolve_secret("block:requant-late")
    assert "hunter2" not in str(caught.value)


def test_an_environment_that_holds_no_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, text in {
        "": "the environment has no T, or an empty one; set it where the worker runs",
        " \n": "the environment has no T, or an empty one",
        "abc": "has fewer than 8 characters, which stand in other words by chance and could not be",
    }.items():
        monkeypatch.setenv("T", value)
        with pytest.raises(ConfigError, match=f"secret 'env:T': {text}") as caught:
            resolve_secret("env:T")
        assert "abc" not in str(caught.value)
    monkeypatch.delenv("T")
    with pytest.raises(ConfigError, match="the environment has no T"):
        resolve_secret("env:T")


def test_an_address_that_is_a_secret_is_looked_at_before_the_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = {"kind": "post", "url": "env:HOOK", "token": "env:T"}
    config = micro_config(tmp_path / "state", deploy={"action": action})
    monkeypatch.setenv("T", "hunter2hunter2")
    for value, fault in {
        "https://hook.example/services/hunter3?key=hunter4": "",
        "http://127.0.0.1:9/hunter3": "",
        "http://hook.example/hunter3": "is http:// to another machine",
        "https://me:hunter4@hook.example/hunter3": "holds a user or a password",
        "https://hook.example/hunter3#hunter4": r"holds a fragment",
        "hunter3hunter4": "is not http:// or https://",
    }.items():
        monkeypatch.setenv("HOOK", value)
        problems = [str(problem) for problem in secret_problems(config)]
        assert len(problems) == bool(fault)
        for problem in problems:
            assert f"deploy.action.url: what env:HOOK holds {fault}" in problem
            assert "hunter" not in problem


def test_the_secrets_of_the_servers_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config(
        tmp_path / "state", deploy={"action": {"kind": "command", "argv": ["x"], "secrets": NAMED}}
    )
    monkeypatch.setenv("NAMED", "named-by-the-action")
    monkeypatch.setenv("HF_TOKEN", "token-of-the-hub")
    made = make_credentials(Store(config.state.resolve()), "me:password-in-the-state")
    with temporary_settings({PREFECT_API_AUTH_STRING: "me:password-of-prefect"}):
        redact = redactor_of(config)
    known = (made, "password-of-prefect", "token-of-the-hub", "named-by-the-action")
    assert redact(" and ".join(known)) == "*** and *** and *** and ***"
