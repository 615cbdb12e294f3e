"""Everything on one machine: Prefect's server, MLflow's server, a worker, the deployments."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from requant.errors import ConfigError, TerminalError, TransientError
from requant.machine.services import (
    POLL_SECONDS,
    STOP_SECONDS,
    Service,
    launch,
    running,
    start,
    stop,
    unreachable,
    wait_until_ready,
)
from requant.store import Store
from requant.store.gc import held_nights
from requant.store.locks import holder_of
from tasks import tracking
from tasks.servers.access import (
    PATIENCE_SECONDS,
    admits,
    credentials,
    expect_protected,
    make_credentials,
    write_ways,
)
from tasks.servers.folders import close_again, keep_private
from tasks.servers.own import PREFECT, WORKER, prefect_api, talking_to_own
from tasks.servers.prefect_server import SERVER_AUTH, command_path, talking_to
from tasks.servers.services import (
    CLIENT_AUTH,
    mlflow_service,
    page,
    prefect_environment,
    prefect_service,
    python_path,
    worker_service,
)
from tasks.servers.setup import (
    crash_runs,
    expect_signs_of_life,
    prepare_server,
    runs_in_progress,
    runs_without_deployment,
)
from tasks.tracking.protected import MLFLOW

FLOW_RUN_MARK = "PREFECT__FLOW_RUN_ID="
"""In the environment of each process that a worker starts."""


def start_machine(
    root: Path,
    state: Path,
    prefect_port: int,
    mlflow_port: int,
    accelerators: int,
    processors: int,
    *,
    servers_only: bool = False,
) -> Iterator[str]:
    """Start what does not run yet, and deploy `prefect.yaml`; yields what a person should know.

    Both servers listen on the loopback address only, and ask for the password in the state folder.

    Args:
        root: Of the project, with `prefect.yaml`.
        state: Folder of artifacts and databases.
        prefect_port: Of the Prefect server.
        mlflow_port: Of the MLflow server.
        accelerators: Stages that may fill a GPU at once.
        processors: Stages that may fill the cores at once.
        servers_only: Deploy nothing and start no worker: no night comes by schedule.

    Raises:
        ConfigError: If another program listens at a port; nothing is started then. If a server
            does not ask for the password.
        TransientError: If a server does not come up.
        TerminalError: If the deployment fails, with its output.
    """
    store = Store(state)
    _refuse_taken(store, PREFECT, "--prefect-port", prefect_port)
    _refuse_taken(store, MLFLOW, "--mlflow-port", mlflow_port)
    yield from _warnings(keep_private(state))
    given = make_credentials(store, os.environ.get(SERVER_AUTH, ""))
    api = f"{page(prefect_port)}/api"
    settings = prefect_environment(state, api, given)
    database = tracking.prepare_database(None, state)
    servers = [
        (prefect_service(store, settings, prefect_port), f"{api}/admin/version"),
        (mlflow_service(root, database, mlflow_port, given), f"{page(mlflow_port)}/version"),
    ]
    # Each imports for a quarter of a minute, and needs the other for nothing yet.
    launched = [launch(store, service) for service, _ in servers]
    for (service, asks), started in zip(servers, launched, strict=True):
        # One that runs already may have been launched by an `up` that failed before it answered.
        wait_until_ready(store, service)
        expect_protected(service.name, asks, given)
        yield _said(service, started)
    ways = write_ways(store, given, page(prefect_port), page(mlflow_port))
    if not servers_only:
        settings["REQUANT_TRACKING_PAGES"] = page(mlflow_port)
        with talking_to(api, given=given):
            yield from set_up_server(root, accelerators, processors, settings)
            expect_signs_of_life()
        yield "deployed: prefect.yaml"
        refuse_strange_worker(store, given)
        if running(store, WORKER) is None:
            yield from _crashed(store, "the machine or its worker went down")
        worker = worker_service(settings)
        yield _said(worker, start(store, worker))
    yield from _warnings(close_again(state))
    yield f"Prefect:  {page(prefect_port)}"
    yield f"MLflow:   {page(mlflow_port)}"
    yield f"log in:   {ways.page.as_uri()}"
    yield f"for your shell:  source {shlex.quote(str(ways.environment))}"


def refuse_strange_worker(store: Store, given: str) -> None:
    """Refuse to go on with a worker that runs and does not know the password of its server.

    Raises:
        ConfigError: With the way out.
    """
    pid = running(store, WORKER)
    if pid is not None and not _environment_holds(pid, f"{CLIENT_AUTH}={given}\0"):
        raise ConfigError(
            f"{WORKER}: was started without the password, or with another, so that the server "
            "gives it no work; `requant down`, then `requant up`, start it anew"
        )


def _warnings(said: Iterable[str]) -> Iterator[str]:
    for text in said:
        yield f"warning: {text}"


def set_up_server(
    root: Path, accelerators: int, processors: int, environment: Mapping[str, str]
) -> list[str]:
    """Give a server its work pool, limits, automation and the deployments of `prefect.yaml`.

    Args:
        root: Of the project, with `prefect.yaml`.
        accelerators: Stages that may fill a GPU at once.
        processors: Stages that may fill the cores at once.
        environment: Added to this process's for `prefect deploy`.

    Returns:
        What would be refused of the nights that were deployed.

    Raises:
        TerminalError: If the deployment fails, with its output.
    """
    prepare_server(accelerators, processors)
    command = [command_path("prefect"), "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command,
        cwd=root,
        # The build step reads the configuration with the project's own code.
        env={**os.environ, **environment, "PYTHONPATH": python_path(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        output = f"{done.stdout}{done.stderr}"
        # The first is the cause, and says what to do; Prefect shows it among five tracebacks.
        refused = re.search(r"^requant\.errors\.\w+: (.+?)\n\n", output, re.DOTALL | re.MULTILINE)
        reason = refused[1] if refused else f"{' '.join(command)}: failed:\n{output}"
        raise TerminalError(f"nothing is deployed from prefect.yaml: {reason}")
    # Each deployment of a configuration says it.
    return list(dict.fromkeys(re.findall(r"^warning: .+$", done.stderr, re.MULTILINE)))


def _refuse_taken(store: Store, service: str, option: str, port: int) -> None:
    """Refuse a port that another program listens at, before anything is started."""
    if running(store, service) is None and unreachable(f"http://127.0.0.1:{port}") is None:
        raise ConfigError(
            f"{option} {port}: another program listens there; nothing was started. Give another "
            f"one: requant up {option} {port + 1}"
        )


def stop_machine(state: Path) -> Iterator[str]:
    """Stop what `start_machine` started, the worker first; yields what a person should know.

    Raises:
        TransientError: If a night that the worker did not start needs the Prefect server, or may
            need it and the server does not say.
    """
    store = Store(state)
    api = prefect_api(store)
    # One that hangs, or has another password, must not keep the machine from being stopped.
    speaks = api is not None and admits(
        f"{api}/admin/version", credentials(store), PATIENCE_SECONDS
    )
    if api is not None:
        _refuse_in_use(store, speaks=speaks)
    before: list[UUID] = []
    if speaks:
        with talking_to_own(store):
            before = runs_in_progress()
    stopped = [WORKER] if stop(store, WORKER) else []
    if stopped:
        _wait_for_end(before)
    if speaks:
        yield from _crashed(store, "stopped with the machine by `requant down`", before)
    elif api is not None:
        yield (
            f"{PREFECT}: does not answer, or not with the password in the state folder; runs in "
            "progress are marked at the next `requant up`"
        )
    stopped += [name for name in (MLFLOW, PREFECT) if stop(store, name)]
    yield f"stopped: {', '.join(stopped) or 'nothing was running'}"


def _refuse_in_use(store: Store, *, speaks: bool) -> None:
    """Refuse to take the server from a night of `requant run`: it would fail after its stage.

    A server that does not speak knows of no night. Then one that no worker of this machine started
    may be of it.
    """
    names: list[str] = []
    if speaks:
        with talking_to_own(store):
            names = [repr(run.name) for run in runs_without_deployment()]
    for path in held_nights(store):
        holder = holder_of(path)
        if holder is None:
            continue
        if speaks:
            needs, why = any(name in holder.what for name in names), "it needs"
        else:
            needs = not _environment_holds(holder.pid, FLOW_RUN_MARK)
            why = f"it may need (in {PATIENCE_SECONDS:.0f} s the server did not say)"
        if needs:
            raise TransientError(
                f"{holder} is in progress: `requant run` started it and {why} this Prefect "
                f"server. Nothing was stopped; let it end, or end it (`kill -INT {holder.pid}`; "
                "the next run goes on from what is valid), then give `requant down` again"
            )


def _crashed(store: Store, reason: str, before: Iterable[UUID] = ()) -> Iterator[str]:
    """Mark the runs the worker left behind: without a worker nobody else will."""
    with talking_to_own(store):
        text = f"{reason}; retry the run to go on from what is valid"
        for name, run_id in crash_runs(text, _has_process, before):
            yield (
                f"{name}: Crashed; with `requant up` running, `prefect flow-run retry {run_id}` "
                "goes on from what is valid"
            )


def _wait_for_end(runs: list[UUID]) -> None:
    """Give flow runs the time to end: the worker passes its signal on and may be gone before."""
    deadline = time.monotonic() + STOP_SECONDS
    while any(_has_process(str(run)) for run in runs) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _has_process(flow_run: str) -> bool:
    """Look for the process a worker gave a flow run: a killed worker may have left it working."""
    numbers = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return any(_environment_holds(pid, FLOW_RUN_MARK + flow_run) for pid in numbers)


def _environment_holds(pid: int, mark: str) -> bool:
    with suppress(OSError):
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def _said(service: Service, started: bool) -> str:
    return f"{service.name}: {'started' if started else 'runs already'}"
