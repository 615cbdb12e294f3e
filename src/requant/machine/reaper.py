"""One program and all it starts, ended together: `python -I reaper.py PARENT GRACE COMMAND...`.

Whoever leaves its process group or session, or whose parent ends first, becomes a child of this
process (prctl(2), PR_SET_CHILD_SUBREAPER) and is found by it. When it is told to end (SIGTERM),
when PARENT dies or the program fails, it ends them all; after one that ended well it leaves them.
Only the standard library is here: it starts in a hundredth of a second, whatever the environment
says about modules.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CANNOT_START = 126
SIGNALLED = 128
"""Added to the number of a signal, as shells do, it is the exit status of who it ended."""

KILL_SECONDS = 10.0
"""One that starts others faster than they can be killed is left to the machine after that."""

POLL_SECONDS = 0.02
AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def main(parent: int, grace: float, command: Sequence[str]) -> int:
    """Run a command; return its exit status."""
    # Blocked, each waits until it is asked for: none comes between a fork and its note.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return SIGNALLED + signal.SIGTERM
    program = _start(command)
    while True:
        number = signal.sigwait(AWAITED)
        if number != signal.SIGCHLD:
            end_descendants(grace)
            return SIGNALLED + number
        status = reap().get(program)
        if status is not None:
            if status:
                end_descendants(grace)
            return status


def end_descendants(grace: float) -> None:
    """End all processes below this one: SIGTERM, and SIGKILL after `grace` seconds."""
    _signal_all(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while _reaped_some_live() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    deadline = time.monotonic() + KILL_SECONDS
    while _reaped_some_live() and time.monotonic() < deadline:
        # Those of the killed come to this process, and are found in the next round.
        _signal_all(signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def reap() -> dict[int, int]:
    """Take leave of the children that have ended; return their exit statuses by process id."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else SIGNALLED - code


def descendants(of: int) -> list[int]:
    """List the processes below one, nearest first."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    nearest = children.get(of, [])
    while nearest:
        found += nearest
        nearest = [child for pid in nearest for child in children.get(pid, [])]
    return found


def _reaped_some_live() -> bool:
    reap()
    return bool(descendants(os.getpid()))


def _signal_all(number: int) -> None:
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, number)
            # One that was stopped takes no other signal before it goes on.
            os.kill(pid, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            continue


def _start(command: Sequence[str]) -> int:
    reaper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Python ignores it, and who is started inherits that.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)
        if os.getppid() == reaper:
            os.execvp(command[0], list(command))
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_START)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
