"""The Prefect server of a run: the one the settings name, or one for the length of the run.

Prefect starts such a server by itself, but only after importing all of it into the flow's process,
and a Ctrl-C ends it before the flow has said that it was interrupted.
"""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, Settings, get_current_settings, temporary_settings
from prefect.utilities.urls import url_for

from requant.config import Config
from requant.errors import ConfigError, RequantError, TerminalError, TransientError
from requant.machine.processes import end, spawn
from requant.machine.services import answers, running, unreachable
from requant.store import Store, locked
from tasks.servers.access import UNAUTHORIZED, credentials, make_credentials
from tasks.servers.own import PREFECT, client_settings, prefect_api

START_SECONDS = 120.0
POLL_SECONDS = 0.05
LOG = f"{PREFECT}.log"
DRAIN_SECONDS = 10.0
SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
"""Environment variable of a Prefect server: user:password that it asks for."""


@dataclass(frozen=True)
class Server:
    """The server a command talks to."""

    ready: Callable[[], None]
    """Waits until it answers."""
    ours: bool
    """It lives as long as the command: no schedule and no deployment of events there."""
    notice: str = ""
    """Which one it is, where a person did not say."""


@contextmanager
def prefect_server(config: Config) -> Iterator[Server]:
    """Use the server the settings name, else that of `requant up`, else one for this block alone.

    One of its own beside a running one of the same state would share that one's database, and
    nobody would see the run on the pages that are open.

    Yields:
        The server; until `ready` is called there is time to import.

    Raises:
        TransientError: From `ready`, if the server does not answer in time; in place of an error
            of the block that is none of requant's, if the server has been there and is gone.
    """
    settings = get_current_settings()
    there = Event()
    store = Store(config.state.resolve())
    started = prefect_api(store)
    if settings.api.url is not None:
        url = settings.api.url
        # An address that was copied comes without the password of what answers there.
        known = url == started and settings.api.auth_string is None
        with talking_to(url, there.is_set, credentials(store) if known else ""):
            yield Server(_then(partial(_expect, url), there), ours=False)
        return
    if started is not None:
        wait = partial(_wait, lambda: running(store, PREFECT), started, store.log_path(LOG))
        with talking_to(started, there.is_set, credentials(store)):
            yield Server(
                _then(wait, there),
                ours=False,
                notice=f"PREFECT_API_URL is not set: the Prefect server that `requant up` started "
                f"for {store.root} is used, {started.removesuffix('/api')}",
            )
        return
    log = store.log_path(LOG)
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as starting:
        starting.enter_context(locked(_database_lock(settings)))
        port = _free_port()
        url = f"http://127.0.0.1:{port}/api"
        command = [command_path("prefect"), "server", "start", "--host", "127.0.0.1"]
        # It lives for one run: nothing is scheduled on it.
        command += ["--port", str(port), "--no-scheduler", "--no-late-runs"]
        # Secret blocks lie in its database, and every user of the machine reaches its port.
        given = make_credentials(store, os.environ.get(SERVER_AUTH, ""))
        # Its pages ask the API at this address, which would otherwise be that of port 4200.
        environment = {**os.environ, "PREFECT_API_URL": url, SERVER_AUTH: given}
        with log.open("wb") as output:
            process = spawn(command, output=output, env=environment)

        def ready() -> None:
            _wait(lambda: process.poll() is None, url, log)
            starting.close()

        try:
            with talking_to(url, there.is_set, given):
                yield Server(_then(ready, there), ours=True)
        finally:
            end(process)


@contextmanager
def talking_to(
    url: str, there: Callable[[], bool] = lambda: True, given: str = ""
) -> Iterator[None]:
    """Name a server for the length of a block, and send what is still to be said at its end.

    Args:
        url: Of its API.
        there: Tells whether it has answered before; one that never did is not gone.
        given: user:password of the server; empty for what the environment says.

    Raises:
        ConfigError: In place of the server's refusal of the password, or of none.
        TransientError: In place of an error of the block that is none of requant's, if the server
            is gone.
    """
    try:
        with temporary_settings(client_settings(url, given)):
            yield
    except RequantError:
        # It names its own cause and way out.
        raise
    except Exception as error:
        if isinstance(error, PrefectHTTPStatusError) and error.response.status_code == UNAUTHORIZED:
            raise ConfigError(
                f"PREFECT_API_AUTH_STRING: {url} does not answer without its password; set this to "
                "user:password of it. Of a server that `requant up` started, `source "
                "STATE/access/environment` does"
            ) from error
        if there() and not answers(f"{url}/health") and unreachable(url):
            raise _gone(url) from error
        raise
    finally:
        # It would wait a minute for a server that is gone.
        APILogWorker.drain_all(timeout=DRAIN_SECONDS)
        EventsWorker.drain_all(timeout=DRAIN_SECONDS)


def _then(wait: Callable[[], None], there: Event) -> Callable[[], None]:
    def ready() -> None:
        wait()
        there.set()

    return ready


def _expect(url: str) -> None:
    """Refuse the address of a server that does not listen; one that is slow to answer may be."""
    if reason := unreachable(url):
        raise _nobody(f"{url} ({reason})")


def _nobody(where: str) -> ConfigError:
    return ConfigError(
        f"PREFECT_API_URL: no Prefect server answers at {where}; start it (`requant up`), or give "
        "another address"
    )


def _gone(url: str) -> TransientError:
    return TransientError(
        f"Prefect's server at {url} is gone. What the stages have finished is kept: start it again "
        "(`requant up`; one of the command's own starts by itself) and give the same command "
        "again, it goes on from there"
    )


def prepare_prefect() -> None:
    """Upgrade the database of the server `prefect_server` starts; nothing where it is remote.

    Raises:
        TerminalError: If Prefect's own upgrade fails, with its output.
    """
    settings = get_current_settings()
    if settings.api.url is not None:
        return
    command = [command_path("prefect"), "server", "database", "upgrade", "-y"]
    with locked(_database_lock(settings)), tempfile.TemporaryFile() as output:
        # One that outlives a kill of this process would hold no lock, and race with the next.
        upgrade = spawn(command, output=output)
        try:
            status = upgrade.wait()
        finally:
            end(upgrade)
        output.seek(0)
        said = output.read().decode(errors="replace")
    if status:
        raise TerminalError(f"{' '.join(command)}: failed:\n{said}")


def command_path(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).parent / name)


def _database_lock(settings: Settings) -> Path:
    # Two servers that come first at once would both migrate the database and one would fail.
    return settings.home / "requant.lock"


@contextmanager
def named_server() -> Iterator[None]:
    """Talk to the server a person named for the length of a block; see `talking_to`.

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
        raise _nobody(str(url))
    with talking_to(str(url)):
        yield


def flow_run_page(flow_run: object) -> str:
    """Return the address of a flow run's page on the server of the current settings."""
    return url_for("flow-run", str(flow_run)) or ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(alive: Callable[[], object], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and alive():
        if answers(f"{url}/health"):
            return
        time.sleep(POLL_SECONDS)
    raise TransientError(
        f"Prefect's server did not answer at {url} within {START_SECONDS:.0f} s; see {log}"
    )
