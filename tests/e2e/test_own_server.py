"""A run without a Prefect server starts its own, and nothing of it stays, however the run ends."""

import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import yaml

from requant.config import Config
from requant.machine.services import status
from tests.e2e.machine import REQUANT, free_port
from tests.support.alive import of_prefect_home
from tests.support.chain import MICRO, promoting
from tests.support.stages import stages_on

ROOT = Path(__file__).parents[2]


def servers(home: Path) -> list[str]:
    """List the Prefect servers of a home."""
    return [command for command in of_prefect_home(home) if "server start" in command]


def test_a_run_that_is_interrupted_says_so_and_leaves_no_server(tmp_path: Path) -> None:
    document = yaml.safe_load(MICRO) | {"state": str(tmp_path / "state")}
    document["prepare_base"]["source"]["steps"] = 100_000
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(document))
    home = tmp_path / "prefect"
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    environment.pop("PREFECT_API_URL", None)
    log = tmp_path / "run.log"
    with log.open("wb") as output:
        run = subprocess.Popen(
            [*REQUANT, "run", str(tmp_path / "micro.yaml")],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            # A shell starts what runs in its background with the signal ignored.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
    try:
        deadline = time.monotonic() + 120
        while b"- training" not in log.read_bytes() and time.monotonic() < deadline:
            assert run.poll() is None, log.read_text()
            time.sleep(0.1)
        (server,) = servers(home)
        # Another user of the machine reaches its port too, and Secret blocks are in its database.
        port = server.split("--port ")[1].split()[0]
        assert status(f"http://127.0.0.1:{port}/api/block_documents/count", "", 30) == 401
        run.send_signal(signal.SIGINT)
        started = time.monotonic()
        ended = run.wait(60)
        # A server that went first would keep the run waiting for minutes.
        assert time.monotonic() - started < 30
        time.sleep(0.5)
        assert servers(home) == []
        assert ended == 130
        assert "Crashed" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        run.kill()


NOISE = (
    "not a git repository",
    "Still processing",
    "Disk subsystem",
    "Failed to create the Prefect home",
    "_C_mxfp8",
    "no triton",
    "KernelPreference",
    "Writing model shards",
    "Token indices",
    "Warning",
    "ERROR",
    "Traceback",
)
"""Words of libraries that a person can do nothing about."""


def test_a_run_alone_deploys_what_it_promotes_and_says_nothing_but_that(tmp_path: Path) -> None:
    # Not in this project's folder, which may be a git repository.
    for name in ("flows", "tasks"):
        (tmp_path / name).symlink_to(ROOT / name)
    document = promoting(yaml.safe_load(MICRO)) | {"state": str(tmp_path / "state")}
    document["deploy"] = {"action": {"kind": "copy", "folder": str(tmp_path / "served")}}
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(document))
    # As in the README's first command: below a state folder that is not there yet.
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "state" / "prefect")}
    environment.pop("PREFECT_API_URL", None)

    def requant(*words: str) -> str:
        done = subprocess.run(
            [*REQUANT, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    config = str(tmp_path / "micro.yaml")
    said = requant("run", config)
    assert "version 1: champion" in said
    assert [word for word in NOISE if word in said] == [], said
    for stage in stages_on(Config.model_validate(document)):
        assert f"{stage}  done  " in said
    assert re.search(r"train_adapter  done  [^\n]* s  loss \d.* → \d", said)
    assert (tmp_path / "served" / "current" / "model.safetensors").exists()
    state = tmp_path / "state"
    below = [state, *state.rglob("*")]
    assert state / "prefect/prefect.db" in below
    assert [path for path in below if path.lstat().st_mode & 0o077] == []
    assert "it is deployed already" in requant("promote", config)

    # The command it says for its pages starts servers that ask for the password.
    (command,) = re.findall(r"Prefect:  (PREFECT_HOME=\S+ \S+/requant up .+)", said)
    ports = free_port(), free_port()
    shown = subprocess.run(
        f"{command} --prefect-port {ports[0]} --mlflow-port {ports[1]}",
        shell=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "worker" not in shown.stdout
        assert f"log in:   file://{state}/access/login.html" in shown.stdout
        assert "then open http://127.0.0.1:5000/#/experiments/" in said
        for port, path in zip(ports, ("/api/flow_runs/count", "/"), strict=True):
            assert status(f"http://127.0.0.1:{port}{path}", "", 30) == 401
    finally:
        assert "stopped: mlflow-server, prefect-server" in requant("down", "--state", str(state))
