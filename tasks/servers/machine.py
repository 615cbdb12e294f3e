"""Everything on one machine: Prefect's server, MLflow's server, a worker, the deployments."""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from prefect.settings import PREFECT_API_URL, temporary_settings

from requant.errors import ConfigError, TerminalError, TransientError
from requant.machine.services import (
    POLL_SECONDS,
    STOP_SECONDS,
    Service,
    answers,
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
from tasks.servers.own import HEALTH, MLFLOW, PREFECT, WORKER, prefect_api
from tasks.servers.prefect_server import command_path, talking_to
from tasks.servers.setup import (
    HEARTBEAT_SECONDS,
    POOL,
    crash_runs,
    expect_signs_of_life,
    prepare_server,
    runs_in_progress,
    runs_without_deployment,
)

PATIENCE_SECONDS = 20.0
"""On a machine whose cores are taken a healthy server takes seconds to answer."""
FLOW_RUN_MARK = "PREFECT__FLOW_RUN_ID="
"""In the environment of each process that a worker starts."""


def start_machine(
    root: Path, state: Path, prefect_port: int, mlflow_port: int, accelerators: int, processors: int
) -> Iterator[str]:
    """Start what does not run yet, and deploy `prefect.yaml`; yields what a person should know.

    Both servers listen on the loopback address only.

    Args:
        root: Of the project, with `prefect.yaml`.
        state: Folder of artifacts and databases.
        prefect_port: Of the Prefect server.
        mlflow_port: Of the MLflow server.
        accelerators: Stages that may fill a GPU at once.
        processors: Stages that may fill the cores at once.

    Raises:
        ConfigError: If another program listens at a port; nothing is started then.
        TransientError: If a server does not come up.
        TerminalError: If the deployment fails, with its output.
    """
    store = Store(state)
    _refuse_taken(store, PREFECT, "--prefect-port", prefect_port)
    _refuse_taken(store, MLFLOW, "--mlflow-port", mlflow_port)
    api = f"http://127.0.0.1:{prefect_port}/api"
    settings = prefect_environment(state, api)
    database = tracking.prepare_database(None, state)
    here = ("--host", "127.0.0.1", "--port")
    prefect = Service(
        PREFECT,
        (command_path("prefect"), "server", "start", *here, str(prefect_port)),
        settings,
        f"{api}{HEALTH}",
    )
    mlflow = Service(
        MLFLOW,
        (
            *(command_path("mlflow"), "server", *here, str(mlflow_port)),
            *("--workers", "1", "--backend-store-uri", database),
        ),
        # Six processes that wait for jobs nobody here starts.
        {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        f"http://127.0.0.1:{mlflow_port}{HEALTH}",
    )
    # Each imports for a quarter of a minute, and needs the other for nothing yet.
    launched = [(service, launch(store, service)) for service in (prefect, mlflow)]
    for service, started in launched:
        # One that runs already may have been launched by an `up` that failed before it answered.
        wait_until_ready(store, service)
        yield _said(service, started)
    settings["REQUANT_TRACKING_PAGES"] = f"http://127.0.0.1:{mlflow_port}"
    with talking_to(api):
        yield from set_up_server(root, accelerators, processors, settings)
        expect_signs_of_life()
    yield "deployed: prefect.yaml"
    if running(store, WORKER) is None:
        yield from _crashed(store, "the machine or its worker went down")
    worker = Service(
        WORKER,
        [command_path("prefect"), "worker", "start", "--pool", POOL, "--type", "process"],
        settings,
        None,
    )
    yield _said(worker, start(store, worker))
    yield f"Prefect:  http://127.0.0.1:{prefect_port}"
    yield f"MLflow:   http://127.0.0.1:{mlflow_port}"
    yield f"for your shell:  export PREFECT_API_URL={api}"


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
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        cwd=root,
        # The build step reads the configuration with the project's own code.
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
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
    # One that hangs must not keep the machine from being stopped.
    speaks = api is not None and answers(f"{api}{HEALTH}", PATIENCE_SECONDS)
    if api is not None:
        _refuse_in_use(store, speaks=speaks)
    before: list[UUID] = []
    if speaks:
        with temporary_settings({PREFECT_API_URL: api}):
            before = runs_in_progress()
    stopped = [WORKER] if stop(store, WORKER) else []
    if stopped:
        _wait_for_end(before)
    if speaks:
        yield from _crashed(store, "stopped with the machine by `requant down`", before)
    elif api is not None:
        yield f"{PREFECT}: does not answer; runs in progress are marked at the next `requant up`"
    stopped += [name for name in (MLFLOW, PREFECT) if stop(store, name)]
    yield f"stopped: {', '.join(stopped) or 'nothing was running'}"


def _refuse_in_use(store: Store, *, speaks: bool) -> None:
    """Refuse to take the server from a night of `requant run`: it would fail after its stage.

    A server that does not speak knows of no night. Then one that no worker of this machine started
    may be of it.
    """
    names: list[str] = []
    if speaks:
        with temporary_settings({PREFECT_API_URL: prefect_api(store)}):
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
    with temporary_settings({PREFECT_API_URL: prefect_api(store)}):
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


def prefect_environment(state: Path, api: str) -> dict[str, str]:
    """Return the settings of a server and its workers that survive crashes of either.

    Args:
        state: Folder; Prefect's database lies below it.
        api: Address of the server's API.
    """
    leases = "prefect.server.concurrency.lease_storage.filesystem"
    return {
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(state / "prefect")),
        "PREFECT_API_URL": api,
        # In memory a restart of the server would forget which night is in progress.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _said(service: Service, started: bool) -> str:
    return f"{service.name}: {'started' if started else 'runs already'}"
