"""Rows as they stand in files and on the hub: read one by one, their shape not looked at yet."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from requant.errors import ConfigError, ContractError, is_transient
from requant.machine.library_noise import no_datasets_bars
from requant.outside.json_text import Bounds, MalformedJson, parse_json
from requant.wording import data_size, printable, shown

if TYPE_CHECKING:
    from pyarrow import Field, RecordBatch

    from requant.config.data import HubData
    from requant.config.sources import HubRows

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


@dataclass(frozen=True)
class Line:
    """A row as it stands, before its shape is looked at."""

    place: str
    """File and line, or dataset and row number."""
    row: Any
    """What was read; where nothing can be, the `ContractError` that says why, place first."""
    raw: bytes = b""
    """The line of a .jsonl; of one that is longer than any row, its sha256."""


def jsonl_lines(file: BinaryIO, name: str, size: int, *, packed: bool = False) -> Iterator[Line]:
    """Yield each line of a .jsonl that is not empty; what is wrong with one hides no other.

    Args:
        file: At its beginning, unpacked.
        name: What places and errors call it.
        size: Bytes of the file as it is stored; of one that grows, when it was opened: no line that
            begins beyond is read.
        packed: The file is stored otherwise than it is read.

    Raises:
        ContractError: If the file is UTF-16, or unpacks to more than any text does.
    """
    # Not by `datasets`: Arrow guesses one type a column, so it fails on rows that differ, without
    # their line, and turns text that looks like dates into dates.
    for number, (line, digest) in enumerate(_split_lines(file, name, size, packed), 1):
        place = f"{name}, line {number}"
        if number == 1 and line.startswith(UTF16):
            raise ContractError(f"{name}: is UTF-16; save it as UTF-8")
        text = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
        if digest:
            error = ContractError(f"{place}: is longer than {data_size(ROW.size)}; cut it")
            yield Line(place, error, digest)
        elif text.strip():
            yield Line(place, _parse_text(text, place), text)


def _split_lines(
    file: BinaryIO, name: str, size: int, packed: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Yield each line; of one over the bounds of a row its beginning, and the sha256 of all."""
    unpacked = 0
    # What is being appended would be taken apart: half a line now, its other half as the next one.
    while (packed or unpacked < size) and (line := file.readline(ROW.size + 1)):
        unpacked += len(line)
        if len(line) <= ROW.size:
            yield line, b""
        else:
            # One without end, such as that of a binary file, is passed over piece by piece.
            digest, piece = hashlib.sha256(line), line
            while piece and not piece.endswith(b"\n"):
                piece = file.readline(ROW.size)
                digest.update(piece)
                unpacked += len(piece)
                _refuse_swelling(name, unpacked, size)
            yield line, digest.digest()
        _refuse_swelling(name, unpacked, size)


def _parse_text(text: bytes, place: str) -> Any:
    try:
        return parse_json(text, ROW, finite=True, halves=True)
    except MalformedJson as error:
        return ContractError(
            f"{place}: is not JSON ({error}): {shown(text.decode(errors='replace'))}; "
            'expected one object a line, such as {"messages": [...]}: write the line anew '
            "with json.dumps, or remove it"
        )


def parquet_lines(file: BinaryIO, name: str, size: int) -> Iterator[Line]:
    """Yield the rows of a Parquet file; arguments as `jsonl_lines`.

    Raises:
        ContractError: If it is damaged, has columns of one name, or unpacks to more than any text.
    """
    # Not by `datasets`, which takes a path for a pattern: week[1].parquet would be week1.parquet.
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        # Not a whole row group at once, which may be the file.
        table = ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        _check_columns(name, table.schema_arrow)
        groups = map(table.metadata.row_group, range(table.metadata.num_row_groups))
        _refuse_swelling(name, sum(group.total_byte_size for group in groups), size)
        number, unpacked = 0, 0
        for batch in table.iter_batches(BATCH_ROWS):
            # A text that a dictionary holds once for many rows is unpacked for each.
            unpacked += batch.nbytes
            _refuse_swelling(name, unpacked, size)
            for row in _batch_rows(batch):
                number += 1
                place = f"{name}, row {number}"
                yield Line(place, _foreign(row, place) if isinstance(row, Exception) else row)
    except MemoryError:
        raise  # of a look, which tells it by the piece it was at; Arrow's is an ArrowException
    # Arrow raises what Python has for a wrong value.
    except (ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
        if is_transient(error):
            raise
        raise ContractError(
            f"{name}: is not Parquet, or damaged: {printable(error)[:300]}; write it anew"
        ) from error


def _batch_rows(batch: "RecordBatch") -> list[Any]:
    """Return the rows of a batch; for one with a value that Python has not, the error alone."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [error]
        return [row for at in range(batch.num_rows) for row in _batch_rows(batch.slice(at, 1))]


def _foreign(error: Exception, place: str) -> ContractError:
    return ContractError(
        f"{place}: holds a date out of range, or text that is not UTF-8 ({printable(error)}); "
        "write the row anew"
    )


def hub_lines(source: "HubData | HubRows", split: str, field: str, cache: Path) -> Iterator[Line]:
    """Yield the rows of a split of a dataset on the hub.

    Args:
        source: Repository, revision and subset.
        split: Its name.
        field: The configuration's, for the errors.
        cache: Folder in which `datasets` keeps its Arrow copy of the split.

    Raises:
        ConfigError: If repository, subset or split do not exist.
        ContractError: If the split cannot be read.
        TransientError: If the hub cannot be reached.
    """
    import datasets

    from requant.hub import fetch

    folder = fetch(source.repo, source.revision, "dataset", field)
    try:
        with no_datasets_bars():
            builder = datasets.load_dataset_builder(
                str(folder), name=source.subset, cache_dir=str(cache)
            )
            _prepare(builder, f"{field}: {source.repo}, split {split}")
            table = builder.as_dataset(split=split)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            f"{field}: {source.repo} has no split {split!r} of subset {source.subset!r}: {error}"
        ) from error
    for number, row in enumerate(table, 1):
        yield Line(f"{source.repo}, split {split}, row {number}", row)


def _prepare(builder: Any, named: str) -> None:
    """Let `datasets` write its Arrow copy of a dataset."""
    from datasets.exceptions import DatasetGenerationError

    try:
        builder.download_and_prepare()
    # It guesses the types of columns from the first rows, before it reads them.
    except (DatasetGenerationError, ValueError) as error:
        raise ContractError(f"{named}: cannot be read: {error.__cause__ or error}") from error


def row_bytes(row: Any) -> bytes:
    """Return a row as canonical JSON, what JSON has not (dates, bytes, half a character) as text.

    As `requant.canonical.canonical_json` for all that it takes.
    """
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_text)
    return text.encode(errors="surrogatepass")


def _text(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, (bytes, memoryview)) else str(value)


def _check_columns(name: str, columns: "Iterable[Field]") -> None:
    """Refuse columns, or fields of one, of the same name: a row keeps the last of them only.

    And those nested deeper than JSON may be, which what reads a row would go down to.
    """
    # Without calling itself: who wrote the file says how deep it is.
    waiting = [("", list(columns), 1)]
    while waiting:
        inside, fields, level = waiting.pop()
        if level > ROW.depth:
            raise ContractError(
                f"{name}: has more than {ROW.depth} levels of lists and fields{inside}; write them "
                "flat, or leave them out"
            )
        count = Counter(each.name for each in fields)
        twice = [column for column, times in count.items() if times > 1]
        if twice:
            raise ContractError(
                f"{name}: has two columns {shown(twice[0])}{inside}; which is meant nobody knows: "
                "rename or remove one"
            )
        for each in fields:
            # The only field of a list is called as its writer likes.
            within = f" in {shown(each.name)}" if len(fields) > 1 or not inside else inside
            below = [each.type.field(at) for at in range(each.type.num_fields)]
            waiting.append((within, below, level + bool(below)))


def _refuse_swelling(name: str, unpacked: int, size: int) -> None:
    """Refuse a file that unpacks to hundreds of times its size."""
    most = max(SWELLING * size, FREE_BYTES)
    if unpacked > most:
        raise ContractError(
            f"{name}: has {data_size(size)} and unpacks to {data_size(unpacked)}, at most "
            f"{data_size(most)} are read of a file of its size; write the rows as .jsonl"
        )
