"""Locks that die with their holder: flock on a file, so a SIGKILL leaves nothing to clean up."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.05


def acquire(path: Path, timeout: float | None = None, *, shared: bool = False) -> int | None:
    """Take the flock on `path`.

    Args:
        path: The lock file; made where missing, never deleted (deleting one races with a waiter).
        timeout: Seconds to wait; None waits for ever, 0 tries once.
        shared: Whether other shared holders are welcome.

    Returns:
        The file descriptor that holds the lock, to be closed with `os.close`; None at the timeout.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if timeout is None:
            fcntl.flock(descriptor, mode)
            return descriptor
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(POLL_SECONDS)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the flock on `path` for the length of the block, waiting for it first."""
    descriptor = acquire(path, shared=shared)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether anybody holds the flock on `path` now."""
    if not path.exists():
        return False
    descriptor = acquire(path, timeout=0)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False
