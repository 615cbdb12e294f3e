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

VERSION = "alembic_version"
SEEDED = frozenset({VERSION, "workspaces"})
"""Tables that the migrations themselves fill."""
OLDEST = frozenset({"experiments", "runs"})
"""Tables that every version of MLflow has."""
WAIT_SECONDS = 30.0
"""A reader or writer that takes longer than this holds the database."""


def is_current(path: Path) -> bool:
    """Tell whether a database has the schema of the installed MLflow.

    MLflow itself must not be asked: it migrates in place as soon as a table is missing.

    Raises:
        ConfigError: If it belongs to a newer MLflow, or to something else, or cannot be opened.
        TransientError: If somebody else holds it.
    """
    if not path.exists():
        return False
    with _opened(path) as database:
        if _holds_nothing(database):
            return False
        revision = _revision(database)
        if revision is None or not _tables(database) >= OLDEST:
            raise _foreign(path)
    import mlflow

    known = _known_revisions()
    if revision not in known:
        raise ConfigError(
            f"tracking.uri: {path} has schema {revision}, which MLflow {mlflow.__version__} does "
            "not know: a newer MLflow made it; install that one, or give another file"
        )
    return revision == known[0]


def migrate(path: Path) -> None:
    """Bring a database to the schema of the installed MLflow; one that holds nothing is made anew.

    The caller holds the lock under which databases are made.

    Raises:
        TransientError: If somebody else reads or writes it all the time; nothing was changed.
    """
    from mlflow.db import upgrade

    draft = path.with_name(f".{path.name}.migrating")
    _remove(draft)
    try:
        with _opened(path) as database:
            _hold(database)
            if not _holds_nothing(database):
                with closing(sqlite3.connect(draft)) as copy:
                    database.backup(copy)
            upgrade.callback(f"sqlite:///{draft}")
            with closing(sqlite3.connect(draft)) as copy:
                copy.backup(database)
    finally:
        _remove(draft)


def _hold(database: sqlite3.Connection) -> None:
    """Keep everybody else from a database until its connection is closed.

    What was written to it after it was copied would be lost with the copy's return. SQLite puts a
    backup into no connection with an open transaction, so the lock must outlive one:
    https://www.sqlite.org/pragma.html#pragma_locking_mode.
    """
    # While it waits in this order it keeps no lock that the writer it waits for must have.
    database.execute("BEGIN EXCLUSIVE")
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("COMMIT")


def _holds_nothing(database: sqlite3.Connection) -> bool:
    """Tell whether a database is new, or is what a kill among the first migrations left.

    Of every other one of MLflow's some table has a row: opening it the first time makes an
    experiment. Empty tables of another program are that program's.
    """
    tables = _tables(database)
    if not tables:
        return True
    revision = _revision(database)
    if tables - _mlflows_tables() or (revision and revision not in _known_revisions()):
        return False
    return not any(
        database.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() for name in tables - SEEDED
    )


def _tables(database: sqlite3.Connection) -> set[str]:
    # A migration that was killed leaves a table half copied.
    found = database.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table'"
        " AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '_alembic_tmp_*'"
    )
    return {name for (name,) in found}


def _revision(database: sqlite3.Connection) -> str | None:
    if VERSION not in _tables(database):
        return None
    found = database.execute(f"SELECT version_num FROM {VERSION}").fetchone()
    return None if found is None else str(found[0])


def _mlflows_tables() -> set[str]:
    # Importing it declares the tables of all of MLflow's parts.
    import mlflow.store.db.utils  # noqa: F401
    from mlflow.store.db.base_sql_model import Base

    return {VERSION, *OLDEST, *Base.metadata.tables}


def _known_revisions() -> list[str]:
    """List the schemas the installed MLflow knows, its own first."""
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
    return [script.revision for script in scripts.walk_revisions()]


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        # Without transactions of Python's own beside those that are spelled out here.
        with closing(sqlite3.connect(path, WAIT_SECONDS, isolation_level=None)) as database:
            yield database
    except sqlite3.OperationalError as error:
        # The first byte is the kind, the rest its details.
        match error.sqlite_errorcode & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise TransientError(
                    f"tracking.uri: {path} is in use by another process for more than "
                    f"{WAIT_SECONDS:.0f} s ({error}); stop what uses it (`requant down`, other "
                    "nights) and try again"
                ) from error
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY:
                raise ConfigError(
                    f"tracking.uri: {path} cannot be opened for writing ({error}); give a file "
                    "in a folder that this user may write to, or null for one in the state folder"
                ) from error
            case sqlite3.SQLITE_ERROR:
                raise _foreign(path) from error
        raise
    except sqlite3.DatabaseError as error:
        raise _foreign(path) from error


def _foreign(path: Path) -> ConfigError:
    return ConfigError(
        f"tracking.uri: {path} is no database of MLflow; give another file, or null for one in "
        "the state folder"
    )


def _remove(database: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
