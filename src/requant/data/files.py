"""Rows read from files and from the hub, each with its place for the errors."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from requant.data.formats import Parsed, parse_row
from requant.data.messages import MESSAGE_FIELDS
from requant.errors import ConfigError, ContractError
from requant.machine.library_noise import no_datasets_bars
from requant.outside.files import open_plain
from requant.outside.json_text import Bounds, MalformedJson, parse_json
from requant.wording import data_size, few_lines, printable, shown

if TYPE_CHECKING:
    from pyarrow import Field

    from requant.config.data import Columns, HubData

BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
ROW = Bounds(size=32 << 20, entries=500_000)
"""One line of a .jsonl."""
BATCH_ROWS = 64
"""Rows of a .parquet that are unpacked at once."""
SWELLING = 200
"""Times its size a .parquet may unpack to; text packs to a tenth, columns alike to a hundredth."""
FREE_BYTES = 256 << 20
"""What a small one may unpack to whatever its size."""


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
    # JSONL is read here and not by `datasets`: Arrow guesses one type a column, so it fails on
    # rows that differ, without their line, and turns text that looks like dates into dates.
    read = _jsonl_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)
    return _parsed(read, columns, unknown)


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
    import datasets

    from requant.hub import fetch

    folder = fetch(source.repo, source.revision, "dataset", "prepare_data.source")
    try:
        with no_datasets_bars():
            table = datasets.load_dataset(
                str(folder), name=source.subset, split=split, cache_dir=str(cache)
            )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            f"prepare_data.source: {source.repo} has no split {split!r} of subset "
            f"{source.subset!r}: {error}"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise ContractError(
            f"prepare_data.source: {source.repo}, split {split}: cannot be read: "
            f"{error.__cause__ or error}"
        ) from error
    rows = (
        (f"{source.repo}, split {split}, row {number}", row) for number, row in enumerate(table, 1)
    )
    return _parsed(rows, columns, unknown)


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
    rows: Iterable[tuple[str, Any]], columns: "Columns", unknown: Literal["list", "refuse"]
) -> list[Parsed]:
    found: list[Parsed] = []
    unreadable: list[str] = []
    for place, row in rows:
        try:
            if isinstance(row, ContractError):
                raise row
            found.append(parse_row(row, columns, place))
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


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and row of each line; of one that is not JSON the error, so that all are read."""
    with open_plain(path) as file:
        if file.read(2) in UTF16:
            raise ContractError(f"{path}: is UTF-16; save it as UTF-8")
        file.seek(0)
        # A line without end, such as that of a binary file, is not read to its end.
        lines = iter(lambda: file.readline(ROW.size + 1), b"")
        for number, line in enumerate(lines, 1):
            place = f"{path}, line {number}"
            text = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
            if not text.strip():
                continue
            if len(line) > ROW.size:
                yield place, ContractError(f"{place}: is longer than {data_size(ROW.size)}; cut it")
                return
            row: Any
            try:
                row = parse_json(text, ROW, finite=True, halves=True)
            except MalformedJson as error:
                row = ContractError(
                    f"{place}: is not JSON ({error}): {shown(text.decode(errors='replace'))}; "
                    'expected one object a line, such as {"messages": [...]}: write the line anew '
                    "with json.dumps, or remove it"
                )
            yield place, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    # Not by `datasets`, which takes a path for a pattern: week[1].parquet would be week1.parquet.
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with open_plain(path) as file:
        try:
            table = ParquetFile(file)
            _refuse_twins(path, table.schema_arrow)
            size = os.fstat(file.fileno()).st_size
            groups = map(table.metadata.row_group, range(table.metadata.num_row_groups))
            _refuse_swelling(path, sum(group.total_byte_size for group in groups), size)
            number, unpacked = 0, 0
            for batch in table.iter_batches(BATCH_ROWS):
                # A text that a dictionary holds once for many rows is unpacked for each.
                unpacked += batch.nbytes
                _refuse_swelling(path, unpacked, size)
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
        except MemoryError:
            raise  # of a look, which tells it by the piece it was at; Arrow's is an ArrowException
        # Arrow raises what Python has for a wrong value or a date out of range.
        except (ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
            raise ContractError(
                f"{path}: is not Parquet, or damaged: {printable(error)[:300]}; write it anew"
            ) from error


def _refuse_twins(path: Path, columns: "Iterable[Field]") -> None:
    """Refuse columns, or fields of one, of the same name: a row keeps the last of them only."""
    # Without calling itself: who wrote the file says how deep it is.
    waiting = [("", list(columns))]
    while waiting:
        inside, fields = waiting.pop()
        twice = [name for name, times in Counter(each.name for each in fields).items() if times > 1]
        if twice:
            raise ContractError(
                f"{path}: has two columns {shown(twice[0])}{inside}; which is meant nobody knows: "
                "rename or remove one"
            )
        for each in fields:
            # The only field of a list is called as its writer likes.
            within = f" in {shown(each.name)}" if len(fields) > 1 or not inside else inside
            waiting.append((within, [each.type.field(at) for at in range(each.type.num_fields)]))


def _refuse_swelling(path: Path, unpacked: int, size: int) -> None:
    """Refuse a file that unpacks to hundreds of times its size."""
    most = max(SWELLING * size, FREE_BYTES)
    if unpacked > most:
        raise ContractError(
            f"{path}: has {data_size(size)} and unpacks to {data_size(unpacked)}, at most "
            f"{data_size(most)} are read of a file of its size; write the rows as .jsonl"
        )
