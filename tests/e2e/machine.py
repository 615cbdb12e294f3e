"""A machine as `make up` makes it, in a folder of its own: servers, worker, deployments."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.chain import MICRO, promoting

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).parent / "prefect")
REQUANT = (sys.executable, "-c", "from requant.cli import app; app()")
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace in a nested mapping what a nested mapping names."""
    result = dict(document)
    for name, value in changes.items():
        old = result.get(name)
        nested = isinstance(value, Mapping) and isinstance(old, Mapping)
        result[name] = merged(old, value) if nested else value
    return result


def eventually(what: str, found: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Return the first true answer; fail with `what` after some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.3)
    raise AssertionError(f"after {seconds:.0f} s still not: {what}")


def processes(folder: Path, *words: str) -> list[int]:
    """List processes that work in a folder and whose command holds all words."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            inside = (process / "cwd").resolve() == folder
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if inside and state != "Z" and all(word in command for word in words):
            found.append(int(process.name))
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Machine:
    """A project folder, and what runs in it."""

    folder: Path
    prefect_port: int
    mlflow_port: int
    # One for all: making a client reads the certificates of the whole system each time.
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30), repr=False)

    @property
    def state(self) -> Path:
        return self.folder / ".requant"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def password(self) -> str:
        """user:password of both servers."""
        return (self.state / "access/password").read_text()

    @property
    def mlflow(self) -> str:
        """Address of the MLflow server, for who brings the password."""
        return f"http://{self.password}@127.0.0.1:{self.mlflow_port}"

    def requant(self, *words: object, fails: int = 0) -> str:
        """Run a command in the project, which finds the servers itself; return all it printed."""
        return self._run([*REQUANT, *map(str, words)], {}, fails)

    def sourced(self, *words: object, fails: int = 0) -> str:
        """Run a command that must be told of the server, in the project."""
        return self.command([*REQUANT, *map(str, words)], fails)

    def prefect(self, *words: object) -> str:
        return self.command([PREFECT, "--no-prompt", *map(str, words)])

    def command(self, command: list[str], fails: int = 0) -> str:
        """Run a command in a shell for which a person sourced what `up` names."""
        return self._run(command, self._sourced(), fails)

    @contextmanager
    def second_worker(self) -> Iterator[None]:
        """Let a worker of another machine look for work, which shares the store and the server."""
        home = {"PREFECT_HOME": str(self.folder / "second"), "PYTHONPATH": str(self.folder)}
        log = self.folder / "second.log"
        with log.open("w") as said:
            worker = subprocess.Popen(
                [PREFECT, "worker", "start", "--pool", "requant", "--type", "process"],
                cwd=self.folder,
                env={**self._environment(self._sourced()), **home},
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            try:
                eventually("the second worker works", lambda: "started!" in log.read_text())
                yield
            finally:
                # Told to end, Prefect's worker may hang in its own clean-up; its runs have ended.
                worker.kill()
                worker.wait()

    def _sourced(self) -> dict[str, str]:
        lines = (self.state / "access/environment").read_text().splitlines()
        pairs = (shlex.split(line)[1].partition("=") for line in lines)
        return {name: value for name, _, value in pairs}

    def _environment(self, sourced: Mapping[str, str]) -> dict[str, str]:
        environment = {**os.environ, "TOKEN": "s3cret-of-the-test", **sourced}
        environment["PREFECT_HOME"] = str(self.state / "prefect")
        # A worker looks for work every ten seconds; a suite that waits for it gains by two.
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "2"
        return environment

    def _run(self, command: list[str], sourced: Mapping[str, str], fails: int) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(sourced),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def up(self) -> str:
        ports = ("--prefect-port", self.prefect_port, "--mlflow-port", self.mlflow_port)
        # With one, the retry of a killed night waits a minute for the slot the dead one held.
        return self.requant("up", *ports, "--accelerators", 3)

    def down(self) -> str:
        return self.requant("down")

    def config(self, **changes: Any) -> dict[str, Any]:
        return merged(yaml.safe_load((self.folder / "configs/tiny.yaml").read_text()), changes)

    # ---------------------------------------------------------------- Prefect's API

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._ask("POST", path, dict(body))

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        def answer() -> httpx.Response | None:
            # SQLite behind the server may be busy; Prefect's own client asks again too.
            try:
                known = httpx.BasicAuth(*self.password.split(":"))
                found = self.client.request(method, f"{self.api}/{path}", json=body, auth=known)
            except (httpx.ReadTimeout, httpx.RemoteProtocolError):
                return None
            return None if found.status_code == 503 else found

        response: httpx.Response = eventually(f"{path} is answered", answer, 150)
        response.raise_for_status()
        return response.json() if response.content else None

    def deployments(self) -> dict[str, dict[str, Any]]:
        return {item["name"]: item for item in self.post("deployments/filter", {})}

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        chosen = {"deployments": {"name": {"any_": [deployment]}}}
        return self.post("flow_runs/filter", {**chosen, "sort": "EXPECTED_START_TIME_ASC"})

    def start(self, config: Mapping[str, Any] | None = None, hours_ago: float = 0.0) -> str:
        """Ask for a night, of the deployment's own configuration or another; return its id."""
        due = datetime.now(UTC) - timedelta(hours=hours_ago)
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        deployment = self.deployments()["nightly"]["id"]
        parameters = {"config": dict(config)} if config else {}
        body = {"parameters": parameters, "state": state}
        return str(self.post(f"deployments/{deployment}/create_flow_run", body)["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.get(f"flow_runs/{run_id}"))

    def wait(self, run_id: str, *types: str, seconds: float = 240.0) -> dict[str, Any]:
        """Wait until a flow run has one of the state types; fail on another final one."""

        def reached() -> dict[str, Any] | None:
            run = self.run(run_id)
            if run["state_type"] in types:
                return run
            assert run["state_type"] not in FINAL, (run["state"], self.log(run_id))
            return None

        return dict(eventually(f"{run_id} is {types}", reached, seconds))

    def log(self, run_id: str) -> str:
        query = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200}
        records = self.post("logs/filter", {**query, "sort": "TIMESTAMP_ASC"})
        return "\n".join(record["message"] for record in records)

    def wait_for_log(self, run_id: str, text: str, seconds: float = 300.0) -> None:
        def said() -> bool:
            run = self.run(run_id)
            assert run["state_type"] not in FINAL, (run["state"], self.log(run_id))
            return text in self.log(run_id)

        eventually(f"the log of {run_id} holds {text!r}", said, seconds)

    def retry(self, run_id: str) -> None:
        self.prefect("flow-run", "retry", run_id)

    # ---------------------------------------------------------------- processes

    def worker(self) -> int:
        return int((self.state / "services" / "worker").read_text().split()[0])

    def flow_process(self) -> int:
        """Return the process of the one flow run in progress."""
        (found,) = processes(self.folder, "prefect.engine")
        return found

    def stage_processes(self) -> list[int]:
        return processes(self.folder, "requant.execution.child")

    def checkpoints(self, run_id: str) -> list[int]:
        """List the steps of the whole checkpoints of a flow run's training."""
        chosen = {"flow_runs": {"id": {"any_": [run_id]}}}
        tasks = [task["name"] for task in self.post("task_runs/filter", chosen)]
        (key,) = [name.removeprefix("train_adapter-") for name in tasks if "train_ad" in name]
        found = (self.state / "work").glob(f"{key}*/checkpoint-*/complete")
        return sorted(int(path.parent.name.rpartition("-")[2]) for path in found)


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def make_machine(folder: Path) -> Machine:
    """Copy the project, with a night that takes seconds as its configuration."""
    for name in ("flows", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "prefect.yaml").symlink_to(ROOT / "prefect.yaml")
    (folder / "configs").mkdir()
    document = merged(
        promoting(yaml.safe_load(MICRO)),
        {
            "name": "tiny",
            "state": ".requant",
            "deploy": {"action": {"kind": "copy", "folder": "served"}},
        },
    )
    (folder / "configs/tiny.yaml").write_text(yaml.safe_dump(document))
    return Machine(folder.resolve(), free_port(), free_port())
