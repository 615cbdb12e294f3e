"""Rows of a SQL query, as they come from the database: nothing is changed in it."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.config.data import Columns
from requant.config.sources import SqlRows, field_of
from requant.data.lines import Line, row_bytes
from requant.data.messages import parse_text
from requant.errors import ConfigError, ContractError, TransientError
from requant.redaction import Redact, redactor
from requant.wording import printable, shown

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, RowMapping
    from sqlalchemy.exc import DBAPIError

FETCHED = 1000
"""Rows that a driver which can stream holds at once."""
BUSY = re.compile(
    r"is locked|deadlock|lock wait|lock timeout|timed out|statement timeout|timeout exceeded"
    r"|canceling|try again|try restarting|too many (clients|connections)|could not serialize",
    re.I,
)
"""How databases say that the same query may work in a minute."""
REFUSED = re.compile(
    r"does not exist|authentication failed|access denied|unknown database|no such|not permitted"
    r"|no password|login failed",
    re.I,
)
"""How they say to who connects that no waiting will help."""


def query_lines(source: SqlRows, columns: Columns) -> Iterator[Line]:
    """Yield the rows of a query, in its order; where one ends the reading, a line more says so.

    Args:
        source: Of the configuration.
        columns: Which of them hold a conversation, for those that hold it as JSON in a text.

    Raises:
        ConfigError: If address, driver, database, table or query cannot work.
        TransientError: If the database cannot be reached, or is busy.
    """
    from sqlalchemy.exc import DBAPIError

    number = 0
    database = _database(source)
    with database.connected() as connection:
        rows = database.executed(connection)
        try:
            for row in rows:
                number += 1
                yield _line(dict(row), f"row {number}", columns)
        except DBAPIError as error:
            if database.is_away(error):
                raise database.away(error) from None
            place = f"row {number + 1}"
            said = f"from here on no row can be read ({database.said(error)})"
            yield Line(place, ContractError(f"{place}: {said}; correct the row, or the query"))


@dataclass(frozen=True)
class _Database:
    """A database and how its errors are put."""

    source: SqlRows
    engine: "Engine"
    redact: Redact

    @contextmanager
    def connected(self) -> "Iterator[Connection]":
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            connection = self.engine.connect()
        except (DBAPIError, OSError) as error:
            if not REFUSED.search(str(error)):
                raise self.away(error) from None
            raise self._unfit("url", error) from None
        except SQLAlchemyError as error:
            raise self._unfit("url", error) from None
        # Closed without a commit: what a query changes is rolled back.
        with connection:
            yield connection

    def executed(self, connection: "Connection") -> "Iterable[RowMapping]":
        """Run the query; return its rows."""
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        if self.engine.dialect.name == "sqlite":
            # Bytes that are no text are a fault of their row, and not of all that follow it.
            driver: Any = connection.connection.driver_connection
            driver.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        try:
            # Not as `text`, in which :30 of a time and % of a pattern mean something.
            result = connection.execution_options(
                stream_results=True, no_parameters=True, max_row_buffer=FETCHED
            ).exec_driver_sql(self.source.query)
            columns = Counter(result.keys())
        except SQLAlchemyError as error:
            if isinstance(error, DBAPIError) and self.is_away(error):
                raise self.away(error) from None
            raise self._unfit("query", error) from None
        if twice := [name for name, times in columns.items() if times > 1]:
            raise ConfigError(
                f"{field_of(self.source)}.query: gives two columns {shown(twice[0])}; name one "
                "otherwise (AS)"
            )
        return result.mappings()

    def is_away(self, error: "DBAPIError") -> bool:
        """Tell whether the database, and not the query, is why it failed."""
        if error.connection_invalidated or BUSY.search(str(error.orig)):
            return True
        try:
            self.engine.connect().close()
        except Exception:
            return True
        return False

    def away(self, error: Exception) -> TransientError:
        """The error of a database that cannot be reached, or is busy."""
        said = self.said(error)
        return TransientError(f"{field_of(self.source)}: the database is away or busy ({said})")

    def said(self, error: Exception) -> str:
        """What a driver said, without the secrets of the address."""
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        return printable(self.redact(said))[:500]

    def _unfit(self, field: str, error: Exception) -> ConfigError:
        return ConfigError(f"{field_of(self.source)}.{field}: {self.said(error)}; correct it")


def require_database(source: SqlRows) -> None:
    """Refuse an address that cannot work; nobody connects to it.

    Raises:
        ConfigError: If it is none, its variable, its driver or its file is missing.
    """
    _database(source)


def _database(source: SqlRows) -> _Database:
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import ArgumentError

    field, url = f"{field_of(source)}.url", _address(source)
    try:
        engine = create_engine(url, poolclass=NullPool)
    except ImportError as error:
        raise ConfigError(
            f"{field}: {url.drivername} needs a package that is not installed "
            f"({printable(error)}); install it where the worker runs, or name another driver "
            "(dialect+driver://)"
        ) from None
    except ArgumentError as error:
        raise ConfigError(
            f"{field}: {printable(error)}; install the package of the dialect, or correct it"
        ) from None
    file = url.database or ""
    is_file = url.get_backend_name() == "sqlite" and not re.match("file:|:memory:|$", file)
    if is_file and not Path(file).is_file():
        # It would be made.
        raise ConfigError(f"{field}: there is no file {shown(file)}; give a database that exists")
    secrets = [url.password, *url.query.values(), url.render_as_string(hide_password=False)]
    return _Database(source, engine, redactor(str(secret) for secret in secrets if secret))


def _address(source: SqlRows) -> "URL":
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    given, field = source.url, f"{field_of(source)}.url"
    if name := source.variable:
        # The library reads no other variable: this one changes who may read, and no byte.
        given = os.environ.get(name, "")
        if not given:
            raise ConfigError(
                f"{field}: the environment has no {name}, or an empty one; set it where the "
                "worker runs, to dialect+driver://user:password@host/database"
            )
    try:
        return make_url(given)
    except (ArgumentError, ValueError):
        # Its text may hold what was given.
        raise ConfigError(
            f"{field}: is no address of a database; expected dialect+driver://user@host/database"
        ) from None


def _line(row: dict[str, Any], place: str, columns: Columns) -> Line:
    raw = row_bytes(row)
    try:
        for name in (columns.messages, "conversations"):
            if name and isinstance(row.get(name), str):
                row[name] = parse_text(row[name], f"{place}: {name}")
    except ContractError as error:
        return Line(place, error, raw)
    return Line(place, row, raw)
