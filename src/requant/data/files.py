"""Rows read from files and from the hub, each with its place for the errors."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from requant.data.formats import Parsed, parse_row
from requant.data.lines import Line, hub_lines, jsonl_lines, parquet_lines
from requant.data.messages import MESSAGE_FIELDS
from requant.errors import ContractError
from requant.outside.files import open_plain
from requant.wording import few_lines

if TYPE_CHECKING:
    from requant.config.data import Columns, HubData


def read_row_file(
    path: Path, columns: "Columns", unknown: Literal["list", "refuse"]
) -> list[Parsed]:
    """Read and check a .jsonl or .parquet file.

    Args:
        path: The file.
        columns: Where a row keeps its conversation.
        unknown: What to do about columns and fields that nothing reads.

    Raises:
        ContractError: Naming file, line, value and expected shape of the bad rows, the first few
            and how many more.
    """
    with open_plain(path) as file:
        read = jsonl_lines if path.suffix == ".jsonl" else parquet_lines
        lines = read(file, str(path), os.fstat(file.fileno()).st_size)
        return _parsed(lines, columns, unknown)


def read_hub(
    source: "HubData",
    split: str,
    columns: "Columns",
    unknown: Literal["list", "refuse"],
    cache: Path,
) -> list[Parsed]:
    """Read and check a split of a dataset on the Hugging Face hub; arguments as `read_row_file`.

    `datasets` keeps its Arrow copy of the split in `cache`.

    Raises:
        ConfigError: If repository, subset or split do not exist.
        ContractError: Naming dataset, split and row number of the bad rows.
        TransientError: If the hub cannot be reached.
    """
    lines = hub_lines(source, split, "prepare_data.source", cache)
    return _parsed(lines, columns, unknown)


def describe(name: str, rows: Sequence[Parsed]) -> list[str]:
    """Say what was read: one line for the formats of a source, one for what nothing reads."""
    formats = Counter(row.format for row in rows)
    found = "; ".join(
        kind if len(formats) == 1 else f"{count} {kind}" for kind, count in formats.most_common()
    )
    lines = [f"{name}: {len(rows)} rows, {found}"]
    if ignored := count_ignored(rows):
        listed = ", ".join(f"{field} ({count} rows)" for field, count in ignored.items())
        lines.append(f"{name}: not read: {listed}")
    return lines


def count_ignored(rows: Iterable[Parsed]) -> dict[str, int]:
    """Return column or field -> number of rows in which nothing reads it, by name."""
    return dict(sorted(Counter(field for row in rows for field in row.ignored).items()))


def _parsed(
    lines: Iterable[Line], columns: "Columns", unknown: Literal["list", "refuse"]
) -> list[Parsed]:
    found: list[Parsed] = []
    unreadable: list[str] = []
    for line in lines:
        try:
            found.append(parse_line(line, columns))
        except ContractError as error:
            unreadable.append(str(error))
    problems = few_lines(unreadable, "rows", 10)
    first = next((row for row in found if row.ignored), None)
    if unknown == "refuse" and first is not None:
        listed = ", ".join(f"{name} ({count} rows)" for name, count in count_ignored(found).items())
        problems.append(
            f"{first.place}: {', '.join(first.ignored)}: nothing reads this; in all: {listed}. "
            f"Known fields of a message: {', '.join(MESSAGE_FIELDS)}; beside the conversation: "
            "tools. Remove them, or set prepare_data.unknown_fields=list"
        )
    if problems:
        raise ContractError("\n".join(problems))
    return found


def parse_line(line: Line, columns: "Columns") -> Parsed:
    """Check what was read and bring it into the one shape of this project.

    Raises:
        ContractError: As `parse_row`, or as the line says why nothing could be read.
    """
    if isinstance(line.row, ContractError):
        raise line.row
    return parse_row(line.row, columns, line.place)
