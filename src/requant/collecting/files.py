"""Rows of files, packed or not, here or behind an address; a damaged file ends no night."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from requant.collecting.listing import Found, find_files, remarks
from requant.collecting.reached import is_lasting, reached, reason_of
from requant.config.sources import FileRows, field_of
from requant.data.lines import Line, jsonl_lines, parquet_lines
from requant.errors import ArtifactError, ContractError, TransientError, is_transient
from requant.outside.files import open_plain
from requant.wording import printable

CODECS = {".gz": "gzip", ".zst": "zstd"}
UNPACKED_BYTES = 8192
"""Unpacked at once; so much that stands before the damage in a file is lost, at most."""


def source_lines(source: FileRows, cache: Path, say: Callable[[str], None]) -> Iterator[Line]:
    """Yield the rows of all files of a source, files by name and rows by line.

    What cannot be read of a file is one line more, with the file as its place, after the rows that
    stand before the damage. A remote file is copied first, one at a time: Parquet is read from its
    end, and a connection that breaks is told from a file that is damaged.

    Args:
        source: Of the configuration.
        cache: Folder for the copies.
        say: Is told, before the first row, of paths without files and of files that are not read.

    Raises:
        ConfigError: If a path does not exist, or is no file of rows.
        TransientError: If the files, or one of them, cannot be reached.
    """
    listing = find_files(source)
    for remark in remarks(source, listing):
        say(remark)
    for found in listing.files:
        try:
            with _stored(found, f"{field_of(source)}: {found.place}", cache) as file:
                yield from _file_lines(file, found.place)
        except ContractError as error:
            yield Line(found.place, error)


@contextmanager
def _stored(found: Found, named: str, cache: Path) -> Iterator[BufferedReader]:
    """Open a file as it is stored, of a remote one a copy.

    Raises:
        ContractError: If it is not there any more, may not be read, or is no plain file.
        TransientError: If it cannot be reached.
    """
    if found.fault:
        raise ContractError(f"{found.place}: cannot be listed ({found.fault})")
    if found.is_local:
        with _open_local(found) as file:
            yield file
        return
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="remote-") as folder:
        copy = Path(folder, "rows")
        with _reachable(found, named):
            found.system.get_file(found.path, str(copy))
        with copy.open("rb") as file:
            yield file


def _open_local(found: Found) -> BufferedReader:
    try:
        return open_plain(Path(found.path))
    except ArtifactError as error:
        if error.__cause__ is not None and is_transient(error.__cause__):
            raise TransientError(str(error)) from error
        said = str(error).removeprefix(f"{printable(found.path)}: ")
        raise ContractError(f"{found.place}: {said}") from error


@contextmanager
def _reachable(found: Found, named: str) -> Iterator[None]:
    with reached(named):
        try:
            yield
        except Exception as error:
            if not is_lasting(error):
                raise
            # It was there when the files were listed.
            raise ContractError(
                f"{found.place}: cannot be read ({reason_of(error)}); give a file that can be"
            ) from error


def _file_lines(file: BinaryIO, place: str) -> Iterator[Line]:
    size = os.fstat(file.fileno()).st_size
    if place.endswith(".parquet"):
        yield from parquet_lines(file, place, size)
        return
    try:
        suffix = Path(place).suffix
        yield from jsonl_lines(_unpacked(file, suffix), place, size, packed=suffix in CODECS)
    except OSError as error:
        if is_transient(error):
            raise
        raise ContractError(
            f"{place}: is damaged, or still being written: {printable(error)[:300]}; the rows "
            "before that are read; write it anew"
        ) from error


def _unpacked(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix not in CODECS:
        return file
    # Of gzip and zstd alike: it tells a file that ends in the middle, as zstandard does not.
    from pyarrow import CompressedInputStream, PythonFile

    stream = CompressedInputStream(PythonFile(file, "r"), CODECS[suffix])
    return cast(BinaryIO, BufferedReader(stream, UNPACKED_BYTES))
