"""Kills in promote and deploy, with MLflow's database and a real Prefect server."""

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from requant.store import Store, describe
from requant.store.documents import read_sealed
from requant.store.health import examine
from requant.store.pins import pin_files, read_pin
from tests.chaos.stages import leftovers
from tests.chaos.strikes import Length, Phase, Strike, finished, length_of, moments, struck
from tests.support.chain import MICRO, micro_config, promoting

PROMOTE = Phase("promote", "sql .*(registered_model|model_version)", "sql .*alias|pins/")
DEPLOY = Phase("deploy", "locks/deploy-micro", "sql .*model_version_tags")
SECOND = ("--set", "requantize_gptq.damp_percent=0.1")
"""What the night sets whose model follows the champion."""


@dataclass(frozen=True)
class Server:
    """How a child reaches the Prefect server."""

    url: str
    password: str


@dataclass(frozen=True)
class Line:
    """A model line with a champion that is deployed, and a second model that is not promoted."""

    folder: Path
    """Every child works in its folder `now`."""
    server: Server
    after: dict[str, dict[str, Any]]
    """Phase to the facts of an undisturbed run of it."""
    lengths: dict[str, Length]

    @property
    def now(self) -> Path:
        return self.folder / "now"

    @property
    def file(self) -> Path:
        return self.folder / "micro.yaml"


@contextmanager
def prefect(folder: Path) -> Iterator[Server]:
    """Start a Prefect server as `requant run` does, for a block."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    from tasks.servers.prefect_server import prefect_server

    with at_home(folder / "prefect"), prefect_server(micro_config(folder / "server")) as server:
        server.ready()
        yield Server(str(PREFECT_API_URL.value()), PREFECT_API_AUTH_STRING.value())


@contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """Give Prefect, and the servers that are started, a home and no address of a server."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    before = dict(os.environ)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_settings({PREFECT_HOME: folder}, restore_defaults={PREFECT_API_URL}):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def command(server: Server, *words: str) -> None:
    """Give a command of requant in this process, and end with its exit status."""
    from prefect.settings import temporary_settings

    from requant.cli import app
    from tasks.servers.own import client_settings

    with temporary_settings(client_settings(server.url, server.password)):
        sys.exit(app(list(words), standalone_mode=False))


def line(folder: Path, server: Server) -> Line:
    """Run the nights, the promotions and the deployments that nothing disturbs."""
    found = Line(folder, server, {}, {})
    found.now.mkdir(parents=True, exist_ok=True)
    document = promoting(yaml.safe_load(MICRO)) | {
        "state": str(found.now / "state"),
        "deploy": {"action": {"kind": "copy", "folder": str(found.now / "served")}},
    }
    found.file.write_text(yaml.safe_dump(document))
    done = partial(finished, folder / "log", command, server)
    done("run", str(found.file))
    done("deploy", str(found.file))
    unpromoted = ("--set", "promote.auto=false", "--set", "promote.enabled=false")
    done("run", str(found.file), *SECOND, *unpromoted)
    shutil.copytree(found.now, folder / PROMOTE.name, symlinks=True)
    done(*words(found, PROMOTE))
    found.after[PROMOTE.name] = facts(found.now)
    found.lengths[PROMOTE.name] = length_of(folder / "log", PROMOTE)
    shutil.copytree(found.now, folder / DEPLOY.name, symlinks=True)
    done(*words(found, DEPLOY))
    found.after[DEPLOY.name] = facts(found.now)
    found.lengths[DEPLOY.name] = length_of(folder / "log", DEPLOY)
    return found


def words(line: Line, phase: Phase) -> tuple[str, ...]:
    """The command that does a phase."""
    return ("run" if phase == PROMOTE else "deploy", str(line.file), *SECOND)


def kills_in(
    line: Line, phase: Phase, count: int, uniform: Callable[[], float]
) -> Iterator[Strike]:
    """Kill a phase at `count` moments; after each a plain run must end as if nothing had been.

    Raises:
        AssertionError: If something is not as after the undisturbed run.
    """
    log = line.folder / "log"
    given = (command, line.server, *words(line, phase))
    before = partial(restore, line, phase)
    for moment in moments(line.lengths[phase.name], count, uniform):
        strike = struck(log, phase, moment, before, *given)
        left = difference(line, phase)
        # Between the two a person, a trigger or the next night may look.
        half = facts(line.now)
        assert half["champion"] in half["versions"], f"the champion is no version: {half}"
        finished(log, *given)
        compare(line, phase)
        check(line)
        yield replace(strike, came=f"left: {left or 'nothing'}")


def restore(line: Line, phase: Phase) -> None:
    """Make the state before a phase at the same place: MLflow's database names folders."""
    # A disk may be mounted there.
    for path in line.now.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(line.folder / phase.name, line.now, symlinks=True, dirs_exist_ok=True)


def compare(line: Line, phase: Phase) -> None:
    """Compare registry, pins and deployment with those after the undisturbed run.

    Raises:
        AssertionError: With both, if they differ.
    """
    now, then = facts(line.now), line.after[phase.name]
    wrong = {name: (now[name], then[name]) for name in then if now[name] != then[name]}
    assert not wrong, f"not as after the undisturbed run (now, then): {wrong}"


def check(line: Line) -> None:
    """Look for what is not whole and for what a kill left.

    Raises:
        AssertionError: Naming it.
    """
    store = Store(line.now / "state")
    problems = examine(store, deep=True).problems
    assert problems == (), f"not whole: {problems}"
    left = leftovers(store)
    served = [path.name for path in (line.now / "served").glob(".*") if path.name != ".deploy.lock"]
    assert left + served == [], f"left behind: {left + served}"
    current = (line.now / "served/current").resolve()
    assert describe(current).digest == current.name, f"{current} is not whole"


def facts(now: Path) -> dict[str, Any]:
    """Read what the registry, the pins and the deployment say, without the library under test."""
    store = Store(now / "state")
    with looked_at(store.root / "mlflow.db") as database:

        def rows(query: str) -> list[Any]:
            return database.execute(query).fetchall()

        tags = rows("SELECT version, key, value FROM model_version_tags ORDER BY version, key")
        versions = [number for (number,) in rows("SELECT version FROM model_versions")]
        aliases = dict(rows("SELECT alias, version FROM registered_model_aliases"))
        running = rows("SELECT name FROM runs WHERE status = 'RUNNING'")
        models = rows("SELECT count(*), count(DISTINCT name) FROM logged_models")
    deployed = read_sealed(store, store.deployment_path("micro")) if _deployed(store) else {}
    times = {"deployed", "rolled_back"}
    return {
        "versions": sorted(versions),
        "champion": aliases.get("champion"),
        "challenger": aliases.get("challenger"),
        "tags": [(n, key, "" if key in times else value) for n, key, value in tags],
        "running": running,
        "models": models,
        "pins": {path.name: read_pin(store, path) for path in pin_files(store)},
        "deployment": {name: deployed.get(name) for name in ("version", "digest", "action")},
        "current": (now / "served/current").resolve().name,
        "served": sorted(path.name for path in (now / "served").glob("[!.]*")),
    }


@contextmanager
def looked_at(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a database: opening what a kill left would mend it."""
    with tempfile.TemporaryDirectory() as folder:
        for part in path.parent.glob(f"{path.name}*"):
            shutil.copy(part, folder)
        with closing(sqlite3.connect(Path(folder, path.name))) as database:
            yield database


def difference(line: Line, phase: Phase) -> str:
    """Say what of a phase's work is done."""
    now, after = facts(line.now), line.after[phase.name]
    undone = [name for name, value in after.items() if now[name] != value]
    return f"not yet {', '.join(undone)}" if undone else "all done but the end"


def _deployed(store: Store) -> bool:
    return store.deployment_path("micro").exists()
