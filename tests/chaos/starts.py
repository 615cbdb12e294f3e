"""Kills while MLflow's and Prefect's databases are made for the first time."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos.services import at_home
from tests.chaos.strikes import Phase, Strike, finished, length_of, moments, odd, struck
from tests.e2e.machine import eventually
from tests.support.alive import of_prefect_home
from tests.support.chain import micro_config

ENDED = "ended"
"""A child's last word, so that the end is among its writes."""


def mlflow(now: Path) -> None:
    """Make MLflow's database."""
    from tasks import tracking

    tracking.prepare_database(None, now / "state")
    (now / ENDED).write_text("")


def prefect_by_run(now: Path) -> None:
    """Make Prefect's database as `requant run` does: its server starts."""
    from tasks.servers.prefect_server import prefect_server

    with at_home(now / "prefect"), prefect_server(micro_config(now / "state")) as server:
        server.ready()
        (now / ENDED).write_text("")


def prefect_by_init(now: Path) -> None:
    """Make Prefect's database as `requant init` does."""
    from tasks.servers.prefect_server import prepare_prefect

    with at_home(now / "prefect"):
        (now / "begun").write_text("")
        prepare_prefect()
        (now / ENDED).write_text("")


STARTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "mlflow start": (mlflow, "mkdir state|open state", "state/mlflow.db"),
    "prefect by run": (prefect_by_run, "logs/prefect-server", "prefect/prefect.db"),
    "prefect by init": (prefect_by_init, "open begun", "prefect/prefect.db"),
}
"""What is done first, the write it begins with, and the database it makes"""


def kills_at_start(
    folder: Path, name: str, count: int, uniform: Callable[[], float]
) -> Iterator[Strike]:
    """Kill a first start at `count` moments; after each a plain start makes the same database.

    Raises:
        AssertionError: If it does not, or something outlives its parent.
    """
    start, begins, database = STARTS[name]
    now, log = folder / "now", folder / "log"
    phase = Phase(name, begins, f"open {ENDED}")

    def before() -> None:
        shutil.rmtree(now, ignore_errors=True)
        now.mkdir(parents=True)

    before()
    finished(log, start, now)
    expected = schema(now / database)
    length = length_of(log, phase)
    # A server writes in a process of its own, where no write is seen.
    timed = odd if start is mlflow else (lambda _: True)
    for moment in moments(length, count, uniform, timed):
        strike = struck(log, phase, moment, before, start, now)
        left = made(now / database)
        # A migration that goes on beside the next start's would end by itself in 10 s.
        eventually("nothing outlives its parent", lambda: of_prefect_home(now / "prefect") == [], 3)
        finished(log, start, now)
        found = schema(now / database)
        assert found == expected, f"another schema: {set(expected) ^ set(found)}"
        yield replace(strike, came=f"left: {left or 'nothing'}")


def schema(database: Path) -> list[Any]:
    """Read tables, indices and the version of a database."""
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
    assert sound == "ok", f"{database}: {sound}"
    # An index without SQL stands for a constraint. Constraints come in any order.
    lines = [(kind, name, sorted(_lines(sql))) for kind, name, sql in tables if sql]
    return sorted(map(str, [*lines, *versions]))


def _lines(sql: str) -> list[str]:
    return [line.strip().rstrip(",") for line in sql.splitlines()]


def made(database: Path) -> str:
    """Say how far a database had come, without opening it: that would mend it."""
    paths = (database.parent.glob(f"*{database.name}*")) if database.parent.exists() else ()
    return ", ".join(f"{path.name} of {path.stat().st_size >> 10} KB" for path in sorted(paths))
