"""A service is started once, found again, and stopped with all it started."""

import dataclasses
import http.server
import sys
from pathlib import Path

import pytest

from requant.errors import ConfigError, TransientError
from requant.machine.services import (
    Service,
    address,
    answers,
    launch,
    running,
    start,
    stop,
    wait_until_ready,
)
from requant.store import Store


def test_it_runs_once_and_ends_when_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sleeper = Service("sleeper", ("sleep", "60"), {}, None)
    assert start(store, sleeper)
    pid = running(store, "sleeper")
    assert pid is not None
    assert not start(store, sleeper)
    assert running(store, "sleeper") == pid
    assert stop(store, "sleeper")
    assert running(store, "sleeper") is None
    assert not stop(store, "sleeper")


def test_one_that_runs_elsewhere_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as free:
        port = free.server_port
    command = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port))
    service = Service("pages", command, {}, f"http://127.0.0.1:{port}/")
    assert start(store, service)
    assert address(store, "pages") == service.health
    moved = dataclasses.replace(service, health="http://127.0.0.1:9/")
    with pytest.raises(
        ConfigError, match=rf"pages: runs already, at .*:{port}/, not at .*:9/; use"
    ):
        start(store, moved)
    assert stop(store, "pages")
    assert address(store, "pages") is None


def test_one_that_was_launched_before_is_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as free:
        port = free.server_port
    serve = (
        "import time, http.server as h; time.sleep(0.5); "
        f"h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    )
    health = f"http://127.0.0.1:{port}/"
    service = Service("pages", (sys.executable, "-c", serve), {}, health)
    assert launch(store, service)
    assert not answers(health)
    assert not launch(store, service)
    wait_until_ready(store, service)
    assert answers(health)
    assert stop(store, "pages")


def test_the_number_of_another_process_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.service_path("old")
    path.parent.mkdir(parents=True)
    path.write_text("1 12345")
    assert running(store, "old") is None
    assert not stop(store, "old")


def test_one_that_does_not_answer_is_named_with_its_log(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = "print('cannot bind'); raise SystemExit(1)"
    broken = Service("broken", (sys.executable, "-c", code), {}, "http://127.0.0.1:9/health")
    with pytest.raises(
        TransientError,
        match=r"broken: does not answer at .*:9/health; see .*log, which ends: 'cannot bind'",
    ):
        start(store, broken)
    assert "cannot bind" in store.log_path("broken.log").read_text()
    assert running(store, "broken") is None
