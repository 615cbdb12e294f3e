"""The Prefect server of a run: the one the settings name, or one for the length of the run.

Prefect starts such a server by itself, but only after importing all of it into the flow's process,
and a Ctrl-C ends it before the flow has said that it was interrupted.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, Settings, get_current_settings, temporary_settings

from requant.config import Config
from requant.errors import ConfigError, TerminalError, TransientError
from requant.processes import end, spawn
from requant.services import answers
from requant.store import Store, locked

START_SECONDS = 120.0
POLL_SECONDS = 0.05
DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """The server a command talks to."""

    ready: Callable[[], None]
    """Waits until it answers."""
    ours: bool
    """It lives as long as the command: no schedule and no deployment of events there."""


@contextmanager
def prefect_server(config: Config) -> Iterator[Server]:
    """Start a server, unless the settings name one, and stop it at the end of the block.

    Yields:
        The server; until `ready` is called there is time to import.

    Raises:
        TransientError: From `ready`, if the server does not answer in time.
    """
    settings = get_current_settings()
    if settings.api.url is not None:
        yield Server(lambda: None, ours=False)
        return
    log = Store(config.state.resolve()).log_path("prefect-server.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as starting:
        starting.enter_context(locked(_database_lock(settings)))
        port = _free_port()
        url = f"http://127.0.0.1:{port}/api"
        command = [command_path("prefect"), "server", "start", "--host", "127.0.0.1"]
        # It lives for one run: nothing is scheduled on it.
        command += ["--port", str(port), "--no-scheduler", "--no-late-runs"]
        with log.open("wb") as output:
            # Its pages ask the API at this address, which would otherwise be that of port 4200.
            process = spawn(command, output=output, env={**os.environ, "PREFECT_API_URL": url})

        def ready() -> None:
            _wait(process, url, log)
            starting.close()

        try:
            with temporary_settings({PREFECT_API_URL: url}):
                yield Server(ready, ours=True)
        finally:
            # What Prefect still has to say would wait a minute for a server that is gone.
            APILogWorker.drain_all(timeout=DRAIN_SECONDS)
            EventsWorker.drain_all(timeout=DRAIN_SECONDS)
            end(process)


def prepare_prefect() -> None:
    """Upgrade the database of the server `prefect_server` starts; nothing where it is remote.

    Raises:
        TerminalError: If Prefect's own upgrade fails, with its output.
    """
    settings = get_current_settings()
    if settings.api.url is not None:
        return
    command = [command_path("prefect"), "server", "database", "upgrade", "-y"]
    with locked(_database_lock(settings)):
        upgrade = subprocess.run(command, capture_output=True, text=True, check=False)
    if upgrade.returncode:
        raise TerminalError(f"{' '.join(command)}: failed:\n{upgrade.stdout}{upgrade.stderr}")


def command_path(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).parent / name)


def _database_lock(settings: Settings) -> Path:
    # Two servers that come first at once would both migrate the database and one would fail.
    return settings.home / "requant.lock"


def named_server() -> str:
    """Return the address of the server a person named.

    Raises:
        ConfigError: If none is named, or it does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "PREFECT_API_URL: is not set; give the address of a Prefect server, e.g. "
            "http://127.0.0.1:4200/api (`requant up` starts one)"
        )
    if not answers(f"{url}/health"):
        raise ConfigError(
            f"PREFECT_API_URL: no Prefect server answers at {url}; start it (`requant up`), or "
            "give another address"
        )
    return str(url)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if answers(f"{url}/health"):
            return
        time.sleep(POLL_SECONDS)
    raise TransientError(
        f"Prefect's server did not answer at {url} within {START_SECONDS:.0f} s; see {log}"
    )
