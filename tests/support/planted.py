"""Secrets planted for a test, the spellings a leak may have, and where to look for them."""

import base64
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

ENCODINGS: Mapping[str, str] = {
    "plain": "token",
    "base64": "base64.b64encode(('user:' + token).encode()).decode()",
    "base64-url": "base64.urlsafe_b64encode(('t=' + token).encode()).decode().rstrip('=')",
    "hex": "token.encode().hex().upper()",
    "url": "quote(token, safe='')",
    "json": "json.dumps({'token': token})",
    "split": "chr(10).join(token[at : at + 3] for at in range(0, len(token), 3))",
}
"""Name to an expression that a program or a test evaluates."""


def encoded(token: str, name: str) -> str:
    names: dict[str, object] = {"base64": base64, "json": json, "quote": quote, "token": token}
    # The same words that a deploy program runs.
    return str(eval(ENCODINGS[name], names))


def spellings(secret: str) -> set[bytes]:
    """What a leak of a secret would look like, without the white space."""
    content = secret.encode()
    found = {content, quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode()}
    found |= {content.hex().encode(), content.hex().upper().encode()}
    for before in (b"", b"x", b"xy"):
        start, end = -(-len(before) * 8 // 6), (len(before) + len(content)) * 8 // 6
        found.add(base64.b64encode(before + content)[start:end])
        found.add(base64.urlsafe_b64encode(before + content)[start:end])
    return {re.sub(rb"\s", b"", item) for item in found}


def leaks(places: Iterable[Path], secrets: Mapping[str, str]) -> list[str]:
    """Name every file below some folders that holds a secret in any spelling."""
    wanted = [(name, item) for name, value in secrets.items() for item in spellings(value)]
    return [
        f"{path}: {name} as {item!r}"
        for path in files(places)
        for content in [squeezed(path.read_bytes())]
        for name, item in wanted
        if item in content
    ]


def settle(places: Iterable[Path]) -> None:
    """Wait until Prefect's server has all logs and events, and its write-ahead log is merged."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.instance().drain()
    EventsWorker.drain_all()
    for path in files(places):
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA wal_checkpoint(FULL)")


def files(places: Iterable[Path]) -> list[Path]:
    return [path for place in places for path in sorted(place.rglob("*")) if path.is_file()]


def squeezed(content: bytes) -> bytes:
    """A text without white space and the line breaks that JSON and Python write."""
    return re.sub(rb"\s|\\+[nrt]", b"", content)


def holding(places: Iterable[Path], marker: str) -> set[str]:
    """Name the files that hold a marker: what a search for secrets must have read."""
    return {path.name for path in files(places) if marker.encode() in path.read_bytes()}
