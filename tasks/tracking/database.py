"""MLflow's SQLite database, made and upgraded so that a kill at any moment harms nothing.

MLflow's migrations are not one transaction: killed among them they leave a database that none of
them can start from. So they run on a copy, and SQLite's backup writes the result into place in one
transaction: https://www.sqlite.org/backup.html.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from requant.errors import ConfigError, TransientError

SEEDED = frozenset({"alembic_version", "workspaces"})
"""Tables that the migrations themselves fill."""


def holds_nothing(path: Path) -> bool:
    """Tell whether a database is missing, or is what a kill among the first migrations left.

    Of every other one some table has a row: opening it the first time makes an experiment.
    """
    if not path.exists():
        return True
    with _opened(path) as database:
        return not any(
            database.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()
            for name in _tables(database) - SEEDED
        )


def is_current(path: Path) -> bool:
    """Tell whether a database has the schema of the installed MLflow.

    MLflow itself must not be asked: it migrates in place as soon as a table is missing.

    Raises:
        ConfigError: If it belongs to a newer MLflow, or to something else.
    """
    if holds_nothing(path):
        return False
    import mlflow
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
    with _opened(path) as database:
        found = None
        if "alembic_version" in _tables(database):
            found = database.execute("SELECT version_num FROM alembic_version").fetchone()
    if found is None:
        raise _foreign(path)
    (revision,) = found
    try:
        scripts.get_revision(revision)
    except CommandError:
        raise ConfigError(
            f"tracking.uri: {path} has schema {revision}, which MLflow {mlflow.__version__} does "
            "not know: a newer MLflow made it; install that one, or give another file"
        ) from None
    return bool(revision == scripts.get_current_head())


def migrate(path: Path) -> None:
    """Bring a database to the schema of the installed MLflow; one that holds nothing is made anew.

    The caller holds the lock under which databases are made.

    Raises:
        TransientError: If somebody wrote to the database meanwhile; it is left as it was then.
    """
    from mlflow.db import upgrade

    draft = path.with_name(f".{path.name}.migrating")
    _remove(draft)
    try:
        with closing(sqlite3.connect(path)) as database:
            before = _changes(database)
            if not holds_nothing(path):
                with closing(sqlite3.connect(draft)) as copy:
                    database.backup(copy)
            upgrade.callback(f"sqlite:///{draft}")
            if _changes(database) != before:
                raise TransientError(
                    f"{path}: was written to while its schema was upgraded; stop what uses it "
                    "(`requant down`, other nights) and try again"
                )
            with closing(sqlite3.connect(draft)) as copy:
                copy.backup(database)
    finally:
        _remove(draft)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as database:
        try:
            yield database
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise _foreign(path) from error


def _tables(database: sqlite3.Connection) -> set[str]:
    found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in found}


def _foreign(path: Path) -> ConfigError:
    return ConfigError(
        f"tracking.uri: {path} is no database of MLflow; give another file, or null for one in "
        "the state folder"
    )


def _changes(database: sqlite3.Connection) -> int:
    """Return a number that changes when another connection writes."""
    return int(database.execute("PRAGMA data_version").fetchone()[0])


def _remove(database: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
