"""Servers and workers of one machine: started once, found again by their process id, stopped."""

import base64
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from requant.errors import ArtifactError, ConfigError, TransientError
from requant.outside.files import read_plain
from requant.store import Store
from requant.store.durable import write_durably

POLL_SECONDS = 0.1
PROBE_SECONDS = 3.0
STOP_SECONDS = 20.0
HEALTH = "/health"
"""Below the address of Prefect's API, and of MLflow's pages."""
MARK = re.compile(r"(\d{1,9}) (\d{1,20})\n((?:http://127\.0\.0\.1:\d{1,5}[\w/]*)?)")
MARK_BYTES = 1000
SETTLE_SECONDS = 3.0
"""One that serves no page and has not ended by then is taken to run."""


@dataclass(frozen=True)
class Service:
    """A process that outlives the command that starts it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    """Added to this process's."""
    health: str | None
    """Address that answers when it is ready; None for one that serves no page."""


def start(store: Store, service: Service, seconds: float = 120.0) -> bool:
    """Start a service unless it runs, and wait until it answers.

    Returns:
        Whether it was started now.

    Raises:
        ConfigError: If something else answers at its address, or it runs at another one.
        TransientError: If it ends or does not answer in time, with its log.
    """
    started = launch(store, service)
    if started:
        wait_until_ready(store, service, seconds)
    return started


def launch(store: Store, service: Service) -> bool:
    """Start the process of a service unless it runs, and do not wait for it.

    Returns:
        Whether it was started now.

    Raises:
        ConfigError: If something else answers at its address, or it runs at another one.
    """
    if running(store, service.name) is not None:
        there = address(store, service.name)
        if there != service.health:
            raise ConfigError(
                f"{service.name}: runs already, at {there}, not at {service.health}; use that "
                "port, or stop it first with `requant down`"
            )
        return False
    if service.health is not None and answers(service.health):
        raise ConfigError(
            f"{service.name}: something else answers at {service.health}; stop it, or give another "
            "port"
        )
    log = store.log_path(f"{service.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            service.command,
            env={**os.environ, **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    mark = f"{process.pid} {_born(process.pid)}\n{service.health or ''}"
    write_durably(store.service_path(service.name), mark.encode())
    return True


def wait_until_ready(store: Store, service: Service, seconds: float = 120.0) -> None:
    """Wait until a launched service answers, or has run for a while where it serves no page.

    Raises:
        TransientError: If it ends or does not answer in time, with its log.
    """
    deadline = time.monotonic() + (seconds if service.health else SETTLE_SECONDS)
    while not (service.health and answers(service.health)):
        late = time.monotonic() > deadline
        if running(store, service.name) is None or (late and service.health):
            stop(store, service.name)
            what = f"does not answer at {service.health}" if service.health else "ended at once"
            log = store.log_path(f"{service.name}.log")
            last = (log.read_text().strip().splitlines() or [""])[-1]
            raise TransientError(
                f"{service.name}: {what}; see {log}, which ends: {last!r}. If its port is taken, "
                "give another one"
            )
        if late:
            break
        time.sleep(POLL_SECONDS)


def running(store: Store, name: str) -> int | None:
    """Return the process id of a service that runs, else None."""
    mark = _mark(store, name)
    return mark.pid if mark is not None and _runs(mark) else None


def address(store: Store, name: str) -> str | None:
    """Return where a service that was started answers; None for one that serves no page."""
    mark = _mark(store, name)
    return mark.address or None if mark is not None else None


@dataclass(frozen=True)
class _Mark:
    """What is noted of a service that was started."""

    pid: int
    born: str
    address: str


def _runs(mark: _Mark) -> bool:
    # The number alone may belong to another process since.
    return _born(mark.pid) == mark.born


def _mark(store: Store, name: str) -> _Mark | None:
    """Read a mark; None where there is none, or nothing that this module writes.

    Passwords are sent to the address, so it is one of this machine.
    """
    try:
        text = read_plain(store.service_path(name), MARK_BYTES).decode()
    except (ArtifactError, UnicodeDecodeError):
        return None
    found = MARK.fullmatch(text)
    return _Mark(int(found[1]), found[2], found[3]) if found else None


def served_at(store: Store, name: str) -> str | None:
    """Return the address below which a service that runs answers; None where it does not run."""
    mark = _mark(store, name)
    return mark.address.removesuffix(HEALTH) or None if mark is not None and _runs(mark) else None


def stop(store: Store, name: str) -> bool:
    """Stop a service and all it started; return whether it ran."""
    pid = running(store, name)
    if pid is not None:
        _end(pid)
    store.service_path(name).unlink(missing_ok=True)
    return pid is not None


def _end(pid: int) -> None:
    born = _born(pid)
    try:
        # A worker passes it on to its flow runs.
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _born(pid) == born and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _born(pid: int) -> str:
    """Return when a process was born, in ticks since the machine was; empty if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # One that waits to be reaped runs no more.
    return "" if fields[0] == "Z" else fields[19]


def unreachable(url: str) -> OSError | None:
    """Return why nothing listens at an address now; None where something does."""
    parts = urlparse(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        return error
    return None


def answers(url: str, seconds: float = 1.0) -> bool:
    """Tell whether a server answers well at an address within some seconds."""
    found = status(url, "", seconds)
    return found is not None and 200 <= found < 300


def status(url: str, credentials: str, seconds: float) -> int | None:
    """Return the HTTP status that a server gives for an address; None where it does not answer.

    Args:
        url: The address.
        credentials: user:password, or nothing.
        seconds: It may take.
    """
    headers = {}
    if credentials:
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
