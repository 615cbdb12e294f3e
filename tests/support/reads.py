"""Sources, and what is read of them."""

import json
from pathlib import Path
from typing import Any

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
    return list(read_source(source, Columns(**columns), cache / "cache"))


def outcome(found: list[Read]) -> list[tuple[str, str]]:
    """Place and reason of each."""
    return [(read.place, read.reason) for read in found]
