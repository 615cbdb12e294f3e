"""Secrets that a deployment needs are looked for before the night, in Prefect's blocks too."""

from pathlib import Path

import pytest
from prefect.blocks.system import Secret

from flows.incremental_training import incremental_training
from requant.errors import ConfigError
from tasks.nightly.preflight import secret_problems
from tasks.secrets import resolve_secret
from tests.support.chain import micro_config

ACTION = {"kind": "post", "url": "http://127.0.0.1:9", "token": "block:requant-late"}


def test_a_block_that_does_not_exist_ends_the_night_before_its_first_stage(tmp_path: Path) -> None:
    config = micro_config(tmp_path / "state", deploy={"action": ACTION})
    missing = "deploy.action: secret 'block:requant-late': Prefect has no Secret block"
    assert [str(problem)[: len(missing)] for problem in secret_problems(config)] == [missing]
    state = incremental_training(config, return_state=True)
    assert state.is_failed()
    assert missing in str(state.message)
    assert not list((tmp_path / "state").glob("actions/*"))
    Secret(value="word").save("requant-late")
    assert list(secret_problems(config)) == []
    assert resolve_secret("block:requant-late") == "word"
    Secret(value="").save("requant-late", overwrite=True)
    with pytest.raises(ConfigError, match="the Secret block 'requant-late' is empty; make it with"):
        resolve_secret("block:requant-late")
