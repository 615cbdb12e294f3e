"""Sources, and what is read of them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from requant.collecting.read import Read, read_source
from requant.config.data import Columns
from requant.config.sources import FileRows, RowSource, SqlRows

PAIR = {
    "messages": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
}
GOOD = json.dumps(PAIR).encode() + b"\n"


def files(*paths: Path | str) -> FileRows:
    return FileRows(kind="files", name="week", paths=tuple(map(str, paths)))


def query(url: str, text: str) -> SqlRows:
    return SqlRows(kind="sql", name="tickets", url=url, query=text)


def reads(source: RowSource, cache: Path, **columns: Any) -> list[Read]:
    return list(read_source(source, Columns(**columns), cache / "cache", ignore))


def ignore(remark: str) -> None:
    """Take no notice of what a source says of itself."""


def remarks(source: RowSource, cache: Path) -> list[str]:
    """What a person is told of a source."""
    said: list[str] = []
    list(read_source(source, Columns(), cache / "cache", said.append))
    return said


def outcome(found: list[Read]) -> list[tuple[str, str]]:
    """Place and reason of each."""
    return [(read.place, read.reason) for read in found]


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


def numbered(first: int, last: int) -> bytes:
    return b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(first, last))


def texts(found: list[Read]) -> list[str]:
    return [read.row["text"] for read in found if read.row is not None]


def fill(folder: Path) -> Path:
    """Put a file of each kind, links, and what is no row, into a folder."""
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(numbered(0, 2))
    (folder / "b" / "a.jsonl.gz").write_bytes(gzip.compress(numbered(2, 4), mtime=0))
    (folder / "b" / "deep" / "c.jsonl.zst").write_bytes(zst(numbered(4, 6)))
    parquet.write_table(pa.table({"text": ["row 6", "row 7"]}), folder / "c.parquet")
    (folder / ".c.jsonl.part").write_bytes(b"half a")
    (folder / ".d.jsonl").write_bytes(b"half a")
    (folder / "README.md").write_text("What this is.")
    return folder
