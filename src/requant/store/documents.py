"""Small documents of the state folder, each sealed to the place it is kept in."""

import os
import stat
from pathlib import Path
from typing import Any

from requant.canonical import canonical_json, digest_of
from requant.errors import ArtifactError
from requant.outside.files import read_plain
from requant.outside.json_text import Bounds, MalformedJson, parse_json
from requant.store.durable import write_durably
from requant.store.layout import Store
from requant.store.locks import locked

DOCUMENT = Bounds(size=16 << 20)
"""A record with three curves of 100,000 steps takes half of it, and 0.6 million entries."""
FIELDS = {"content", "seal"}


def write_sealed(store: Store, path: Path, content: Any) -> None:
    """Write a document durably, so that it can be read at this place only, and only as it is.

    The seal is sha256 of the canonical JSON of {place, content}. It shows what was edited, cut
    short or put in another's place. It keeps no secret: who means to forge one can.

    Args:
        store: The store.
        path: Below its root; the place is relative to it, so that a state folder can be moved.
        content: As JSON can hold it.
    """
    seal_earlier(store)
    _write(store, path, content)


def read_sealed(store: Store, path: Path) -> Any:
    """Return the content of a document.

    Raises:
        FileNotFoundError: If there is none.
        ArtifactError: If it is another's, or not as it was written, with its path.
    """
    try:
        found = parse_json(_bytes(path), DOCUMENT)
    except MalformedJson as error:
        raise ArtifactError(f"{path}: is not JSON: {error}") from error
    if isinstance(found, dict) and found.keys() == FIELDS:
        if found["seal"] != _seal(store, path, found["content"]):
            raise ArtifactError(
                f"{path}: was altered, or stands in the place of another: its seal does not match"
            )
        return found["content"]
    if store.sealed_mark.exists():
        raise ArtifactError(f"{path}: has no seal, as all that requant writes has")
    return found


def seal_earlier(store: Store) -> None:
    """Seal, once in the life of a store, what an earlier version wrote without."""
    if store.sealed_mark.exists():
        return
    with locked(store.lock_path("seal")):
        if store.sealed_mark.exists():
            return
        for folder in (store.actions, store.pins, store.deployments):
            for path in sorted(folder.glob("[!.]*")):
                _seal_one(store, path)
        write_durably(store.sealed_mark, b"")


def _seal_one(store: Store, path: Path) -> None:
    """Seal one document; what cannot be read stays, and is told of by who needs it."""
    try:
        # Earlier pins are a digest alone, without the quotes of JSON.
        bare = _bytes(path)
        content = bare.decode() if path.parent == store.pins else parse_json(bare, DOCUMENT)
    except (ArtifactError, ValueError, OSError):
        return
    if isinstance(content, dict) and content.keys() == FIELDS:
        return
    # When it was used last decides what is collected first.
    used = path.stat()
    _write(store, path, content)
    os.utime(path, ns=(used.st_atime_ns, used.st_mtime_ns))


def _write(store: Store, path: Path, content: Any) -> None:
    document = {"content": content, "seal": _seal(store, path, content)}
    write_durably(path, canonical_json(document))


def _bytes(path: Path) -> bytes:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(f"{path}: is no plain file, take it away")
    if found.st_size > DOCUMENT.size:
        raise ArtifactError(f"{path}: has {found.st_size} bytes, more than anything of its kind")
    return read_plain(path, DOCUMENT.size)


def _seal(store: Store, path: Path, content: Any) -> str:
    try:
        place = path.relative_to(store.root).as_posix()
        return digest_of({"place": place, "content": content})
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: holds what requant never writes: {error}") from error
