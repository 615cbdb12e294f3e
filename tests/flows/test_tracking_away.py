"""A tracking server that does not answer is said at once, and its password nowhere."""

import socket
import time
from pathlib import Path

import pytest

from requant.errors import TransientError
from tasks import tracking
from tasks.nightly.preflight import problems_of
from tasks.tracking.connection import public, transient
from tests.support.chain import micro_config


def test_server_that_is_away_is_worth_a_retry_and_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(TransientError, match=r"tracking.uri: http://127.*does not answer.*null"):
        tracking.open_parent(f"http://user:secret@127.0.0.1:{port}", "x", "f", "n", {})
    assert time.monotonic() - started < 30


def test_password_of_the_server_is_in_no_error_and_on_no_page() -> None:
    address = "http://user:secret@127.0.0.1:9/mlflow"
    with pytest.raises(TransientError) as caught:
        tracking.open_parent(address, "x", "f", "n", {})
    assert "secret" not in str(caught.value)
    with pytest.raises(TransientError) as caught, transient(address):
        raise ConnectionError(f"no way to {address}/api")
    assert "secret" not in str(caught.value)
    assert public(address) == "http://127.0.0.1:9/mlflow"


def test_a_server_that_is_away_is_one_problem_that_names_its_field_once(tmp_path: Path) -> None:
    config = micro_config(tmp_path, tracking={"uri": "http://127.0.0.1:9"})
    (problem,) = (found for found in problems_of(config) if "tracking" in str(found))
    assert str(problem).startswith("tracking.uri: http://127.0.0.1:9 does not answer (")
    assert problem.may_pass
