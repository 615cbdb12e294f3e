"""Child processes that never outlive their parent, whatever ends it.

`python -m requant.machine.processes PARENT COMMAND...` asks the kernel to kill it when PARENT dies
(prctl(2), PR_SET_PDEATHSIG) and becomes COMMAND.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 5.0


def spawn(
    command: Sequence[str],
    *,
    output: IO[bytes] | int,
    env: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own that the kernel ends with this process.

    In its own session a Ctrl-C on the terminal does not reach it: whoever started it ends it, in
    the order that is right.

    Args:
        command: Program and arguments; no shell reads them.
        output: File or descriptor that gets stdout and stderr.
        env: Its whole environment; None for this process's.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "requant.machine.processes", str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )


def environment(without: Collection[str] = ()) -> dict[str, str]:
    """Return this process's environment without some variables, with its path for modules."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, "PYTHONPATH": path}


def end(process: "subprocess.Popen[bytes]", grace: float = GRACE_SECONDS) -> int:
    """End a spawned process and all it started: SIGTERM, and SIGKILL after `grace` seconds.

    Returns:
        Its exit status; negative is the number of the signal.
    """
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also where it has ended by itself: what it started may live on in its group.
        _signal_group(process, signal.SIGKILL)
    return process.wait()


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies.

    Args:
        parent: Process id the parent had when it started this one; if it has died since, this
            process ends now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(f"the process that asked for this ({parent}) is gone")


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
