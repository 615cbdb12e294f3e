"""Children end with their parent, and take what they started with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from requant.machine.processes import die_with, end, spawn
from tests.support.alive import gone


def wait_for(path: Path) -> int:
    """Wait until a process has written its id."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was never written")


STUBBORN = "trap '' TERM; sleep 60 & echo $! > {0}.new && mv {0}.new {0}; wait; sleep 60"


def test_end_takes_grandchildren_that_ignore_it_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    process = spawn(["sh", "-c", STUBBORN.format(pid)], output=subprocess.DEVNULL)
    grandchild = wait_for(pid)
    assert end(process, grace=0.2) == -signal.SIGKILL
    assert gone(grandchild)


def test_a_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    shell = f"echo $$ > {pid}.new && mv {pid}.new {pid}; exec sleep 60"
    code = (
        "import subprocess, time; from requant.machine.processes import spawn; "
        f"spawn(['sh', '-c', {shell!r}], output=subprocess.DEVNULL); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    child = wait_for(pid)
    parent.kill()
    parent.wait()
    assert gone(child)


def test_a_child_whose_parent_is_gone_already_ends() -> None:
    with pytest.raises(SystemExit, match="is gone"):
        die_with(os.getpid())
