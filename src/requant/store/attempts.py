"""Attempts: work that has begun and not ended well, so that a person is told of it.

Nothing is cached by them: a record alone says that work is done.
"""

import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from requant.canonical import canonical_json
from requant.errors import ArtifactError
from requant.outside.json_text import read_json
from requant.store.durable import write_durably
from requant.store.layout import Digest, Store
from requant.store.locks import is_held
from requant.wording import printable


class Attempt(BaseModel):
    """The last attempt at a piece of work, for as long as the work is not done."""

    model_config = ConfigDict(frozen=True)

    stage: str
    key: Digest
    started: float
    """Seconds since the epoch."""
    host: str
    pid: int
    labels: dict[str, str]
    """Who asked."""
    ended: float | None = None
    """None while it runs, and for ever where its process was killed."""
    error: str = ""
    """What it failed with."""


@contextmanager
def attempted(store: Store, stage: str, key: str, labels: Mapping[str, str]) -> Iterator[None]:
    """Write down that work begins, and what it fails with; forget it when it ends well."""
    attempt = Attempt(
        stage=stage,
        key=key,
        started=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        labels=dict(labels),
    )
    # What a full disk refuses here the stage meets itself, and says so better.
    with suppress(OSError):
        _write(store, attempt)
    try:
        yield
    except BaseException as error:
        # Who interrupts a stage gives no text, and the name of a file may be no Unicode.
        text = (str(error) or type(error).__name__).encode(errors="replace").decode()
        with suppress(OSError):
            _write(store, attempt.model_copy(update={"ended": time.time(), "error": text}))
        raise
    store.attempt_path(key).unlink(missing_ok=True)


def clear(store: Store, key: str) -> None:
    """Delete what a killed process left beside work that is done; the caller holds its lock."""
    clear_drafts(store, key)
    shutil.rmtree(store.work_path(key), ignore_errors=True)
    store.attempt_path(key).unlink(missing_ok=True)


def clear_drafts(store: Store, key: str) -> None:
    """Delete the drafts of killed processes at a piece of work; the caller holds its lock."""
    for draft in store.tmp.glob(f"{key}-*"):
        shutil.rmtree(draft, ignore_errors=True)


def read_attempt(store: Store, key: str) -> Attempt | None:
    """Return the last attempt at work that is not done; None where there is none to be read."""
    try:
        return load_attempt(store.attempt_path(key))
    except ArtifactError:
        return None


def load_attempt(path: Path) -> Attempt:
    """Return the attempt that a file tells of.

    Raises:
        ArtifactError: If it tells of none, or of one at other work than its name says, with the way
            out.
    """
    try:
        attempt = Attempt.model_validate(read_json(path))
    except (ArtifactError, ValidationError) as error:
        raise ArtifactError(f"{printable(path)}: tells of no attempt; remove it") from error
    # Its key leads to a lock file.
    if f"{attempt.key}.json" != path.name:
        raise ArtifactError(f"{printable(path)}: tells of other work than its name; remove it")
    return attempt


def attempt_files(store: Store) -> list[Path]:
    """List the files that tell of attempts."""
    return sorted(store.attempt_path("x").parent.glob("[!.]*"))


def all_attempts(store: Store) -> list[Attempt]:
    """Return the last attempt at every piece of work that is not done, oldest first."""
    found = (read_attempt(store, path.stem) for path in attempt_files(store))
    return sorted((item for item in found if item), key=lambda item: item.started)


def in_progress(store: Store, key: str) -> bool:
    """Tell whether somebody does this piece of work now."""
    return is_held(store.stage_lock(key))


def in_words(store: Store, attempt: Attempt) -> str:
    """Say what came of an attempt, and when."""
    started = f"{datetime.fromtimestamp(attempt.started, UTC):%Y-%m-%d %H:%M} UTC"
    where = f"process {attempt.pid} on {attempt.host}"
    if in_progress(store, attempt.key):
        return f"is running since {started} ({where})"
    if attempt.ended is None:
        return f"began {started} and never ended ({where}): killed, or its machine died"
    ended = f"{datetime.fromtimestamp(attempt.ended, UTC):%Y-%m-%d %H:%M} UTC"
    return f"failed {ended}: {attempt.error}"


def _write(store: Store, attempt: Attempt) -> None:
    content = canonical_json(attempt.model_dump(mode="json"))
    write_durably(store.attempt_path(attempt.key), content)
