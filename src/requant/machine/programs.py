"""Programs of others: run for a limited time, with all they start, and the end of what they say."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from requant.machine import reaper
from requant.machine.processes import GRACE_SECONDS

CHUNK_BYTES = 1 << 16
POLL_SECONDS = 0.2
KEPT_BYTES = 1 << 18
LATE_BYTES = 1 << 20
"""Read at most of what is still in the pipe when a program has ended; others may write on."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int | None
    """Exit status, 128 and its number where a signal ended it; None: the time was over."""
    output: bytes
    """The end of what it printed, at most `KEPT_BYTES`."""
    dropped: int
    """Bytes that it printed before."""


def run_program(
    argv: Sequence[str],
    env: Mapping[str, str],
    seconds: float,
    *,
    grace: float = GRACE_SECONDS,
) -> Ended:
    """Run a program; no shell reads its arguments.

    When the time is over, when it fails and when this process dies, the program and all it started
    are ended, also what left its process group. What a program that ended well left running stays,
    and its standard output is closed.

    Args:
        argv: Program, by its path or found in PATH, and arguments.
        env: Its whole environment.
        seconds: It may take.
        grace: Seconds between SIGTERM and SIGKILL.
    """
    output, child_output = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(os.getpid()), str(grace), *argv],
            stdin=subprocess.DEVNULL,
            stdout=child_output,
            stderr=subprocess.STDOUT,
            env=env,
            # A Ctrl-C on the terminal reaches this process alone.
            start_new_session=True,
        )
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(child_output)
    tail = _Tail()
    try:
        in_time = _listen(process, output, tail, time.monotonic() + seconds)
    finally:
        # Also where Prefect cancels the flow run: it raises in this thread.
        _end(process, grace)
        _drain(output, tail)
        os.close(output)
    return Ended(process.returncode if in_time else None, bytes(tail.kept), tail.dropped)


class _Tail:
    """The end of an output, and how many bytes came before it."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.dropped = 0

    def add(self, chunk: bytes) -> None:
        self.kept += chunk
        over = len(self.kept) - KEPT_BYTES
        if over > 0:
            del self.kept[:over]
            self.dropped += over


def _listen(process: "subprocess.Popen[bytes]", output: int, tail: _Tail, deadline: float) -> bool:
    """Read until a program has ended; return whether it did before the deadline."""
    is_open = True
    while process.poll() is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        wait = min(left, POLL_SECONDS)
        if not is_open:
            time.sleep(wait / 10)
        elif select.select([output], [], [], wait)[0]:
            chunk = os.read(output, CHUNK_BYTES)
            tail.add(chunk)
            is_open = bool(chunk)
    return True


def _end(process: "subprocess.Popen[bytes]", grace: float) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace + reaper.KILL_SECONDS + 1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _drain(output: int, tail: _Tail) -> None:
    os.set_blocking(output, False)
    for _ in range(LATE_BYTES // CHUNK_BYTES):
        try:
            chunk = os.read(output, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            return
        tail.add(chunk)
