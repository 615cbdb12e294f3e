"""Every row of a source, good or bad, one after the other; none of them ends a night."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from requant.collecting.files import source_lines
from requant.collecting.listing import find_files
from requant.collecting.sql import query_lines, require_database
from requant.config.data import Columns
from requant.config.sources import FileRows, HubRows, RowSource, SqlRows, field_of
from requant.data.files import parse_line
from requant.data.formats import Row
from requant.data.lines import Line, hub_lines, row_bytes
from requant.errors import ContractError


@dataclass(frozen=True)
class Read:
    """One row of a source, or a file of it that cannot be read."""

    source: str
    """Name of the source."""
    place: str
    """File and line below the source (week1/a.jsonl, line 3), or the file; dataset and row."""
    row: Row | None
    """In the project's shape; None where it is bad."""
    raw: bytes
    """What it is known again by: its line, or the canonical JSON of its columns."""
    reason: str = ""
    """Why it is quarantined; empty for a good row."""
    ignored: tuple[str, ...] = ()
    """Columns and fields (`messages[].name`) that nothing reads."""
    format: str = ""
    """How its columns were understood; empty for a bad row."""


def read_source(
    source: RowSource, columns: Columns, cache: Path, say: Callable[[str], None]
) -> Iterator[Read]:
    """Read a source row by row, the bad rows with the reason.

    Files are read by name, their rows by line; a dataset and a query in their own order.

    Args:
        source: Of the configuration.
        columns: Where a row keeps its conversation.
        cache: Folder for copies of remote files, and of datasets.
        say: Is told what a person should know of the source, such as of a folder without files.

    Raises:
        ConfigError: If the source does not exist, naming field, value and way out.
        TransientError: If the source cannot be reached.
    """
    for line in _lines(source, columns, cache, say):
        yield _read(source.name, line, columns)


def require_rows(source: RowSource) -> None:
    """Refuse a source that does not exist; read no row of it, and run no query.

    Raises:
        ConfigError, TransientError: As `read_source`.
    """
    if isinstance(source, FileRows):
        find_files(source)
    elif isinstance(source, HubRows):
        from requant.hub import resolve_commit

        resolve_commit(source.repo, source.revision, "dataset", field_of(source))
    else:
        require_database(source)


def _lines(
    source: RowSource, columns: Columns, cache: Path, say: Callable[[str], None]
) -> Iterator[Line]:
    match source:
        case FileRows():
            yield from source_lines(source, cache, say)
        case SqlRows():
            yield from query_lines(source, columns)
        case HubRows():
            place = f"{source.repo}, split {source.split}"
            try:
                yield from hub_lines(source, source.split, field_of(source), cache)
            except ContractError as error:
                yield Line(place, ContractError(str(error).removeprefix(f"{field_of(source)}: ")))


def _read(name: str, line: Line, columns: Columns) -> Read:
    try:
        parsed = parse_line(line, columns)
    except ContractError as error:
        reason = str(error).removeprefix(f"{line.place}: ")
        unread = isinstance(line.row, ContractError)
        known = f"{line.place}: {reason}".encode() if unread else row_bytes(line.row)
        return Read(name, line.place, None, line.raw or known, reason)
    raw = line.raw or row_bytes(line.row)
    return Read(name, line.place, parsed.row, raw, "", parsed.ignored, parsed.format)
