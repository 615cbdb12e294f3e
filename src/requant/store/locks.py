"""Locks that die with their holder: flock on a file, so a SIGKILL leaves nothing to clean up."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from requant.errors import ArtifactError
from requant.outside.files import read_plain
from requant.outside.json_text import Bounds, MalformedJson, parse_json

POLL_SECONDS = 0.05
FIRST_WORD_SECONDS = 2.0
"""A shorter wait is not worth a line."""
LONGEST_SILENCE_SECONDS = 600.0

SIGNATURE = Bounds(size=1 << 16, depth=4, entries=100)

Say = Callable[[str], None]


class Holder(BaseModel):
    """Who holds a lock, as JSON in the lock file. It says nothing once the lock is free."""

    model_config = ConfigDict(frozen=True)

    what: str
    """For people: a night, a stage, a command."""
    pid: int
    host: str
    since: datetime

    def __str__(self) -> str:
        since = f"since {self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"{self.what} (process {self.pid} on {self.host}, {since})"


def pauses() -> Iterator[float]:
    """Yield the seconds between two words of one who waits: 2, 4, 8, ... at most ten minutes."""
    pause = FIRST_WORD_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_SILENCE_SECONDS)


def acquire(
    path: Path,
    timeout: float | None = None,
    *,
    shared: bool = False,
    what: str = "",
    say: Say | None = None,
) -> int | None:
    """Take the flock on `path`.

    Args:
        path: The lock file; made where missing, never deleted (deleting one races with a waiter).
        timeout: Seconds to wait; None waits for ever, 0 tries once.
        shared: Whether other shared holders are welcome.
        what: Who takes it, for those who wait; of an exclusive lock only.
        say: Is told who holds the lock while this waits, with growing pauses.

    Returns:
        The file descriptor that holds the lock, to be closed with `os.close`; None at the timeout.

    Raises:
        ArtifactError: If a link or a pipe stands in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    descriptor = _open(path, os.O_CREAT)
    started = time.monotonic()
    silences = pauses()
    next_word = started + next(silences)
    try:
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                now = time.monotonic()
                if timeout is not None and now - started >= timeout:
                    break
                if say is not None and now >= next_word:
                    next_word = now + next(silences)
                    say(f"waiting since {now - started:.0f} s for {whose(path)}")
                time.sleep(POLL_SECONDS)
            else:
                if not shared:
                    _sign(descriptor, what)
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def locked(
    path: Path, *, shared: bool = False, what: str = "", say: Say | None = None
) -> Iterator[None]:
    """Hold the flock on `path` for the length of the block, waiting for it first; see `acquire`."""
    descriptor = acquire(path, shared=shared, what=what, say=say)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether anybody holds the flock on `path` now."""
    if not path.exists():
        return False
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder_of(path: Path) -> Holder | None:
    """Return who took the lock last; None where it has not said so."""
    try:
        return Holder.model_validate(parse_json(read_plain(path, SIGNATURE.size), SIGNATURE))
    except (ArtifactError, MalformedJson, ValidationError):
        return None


def _open(path: Path, how: int = 0) -> int:
    """Open a lock file; whatever stands in its place would be written to."""
    try:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | how
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise
        raise _strange(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _strange(path)
    return descriptor


def _strange(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: is a link or no plain file, as locks are; remove it")


def whose(path: Path) -> str:
    """Name a lock that is held, and its holder."""
    holder = holder_of(path)
    return f"{holder}, which holds {path}" if holder else f"whoever holds {path}"


def _sign(descriptor: int, what: str) -> None:
    """Say who holds the lock. Nobody relies on it: a torn write, or a full disk, does no harm."""
    os.ftruncate(descriptor, 0)
    if what:
        holder = Holder(
            what=what, pid=os.getpid(), host=socket.gethostname(), since=datetime.now(UTC)
        )
        with suppress(OSError):
            os.pwrite(descriptor, holder.model_dump_json().encode(), 0)
