"""A program ends at its time limit with all it started, and what it says takes little memory."""

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from requant.machine.programs import KEPT_BYTES, Ended, run_program
from tests.support.alive import alive, gone

# Each leaves a process that notes its id, and holds the pipe.
NOTE = "echo $$ > {0}.new && mv {0}.new {0}; exec sleep 60"
LEAVERS = {
    "a child": "sh -c '{note}' & wait",
    "one in a session of its own": "setsid sh -c '{note}' & wait",
    "an orphan in a session of its own": "(setsid sh -c '{note}' &) ; sleep 60",
    "one that ignores SIGTERM": "sh -c 'trap \"\" TERM; {note}' & wait",
    "one that is stopped": "sh -c '{note}' & sleep 0.3; kill -STOP $!; wait",
}


def run(script: str, seconds: float = 30.0, grace: float = 0.3) -> Ended:
    return run_program(["sh", "-c", script], dict(os.environ), seconds, grace=grace)


def noted(path: Path) -> int:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize("kind", LEAVERS)
def test_all_that_a_program_started_ends_at_its_time_limit(tmp_path: Path, kind: str) -> None:
    note = NOTE.format(tmp_path / "pid")
    # On a machine whose cores are taken a limit may be over before a program has begun.
    for seconds in (1.0, 4.0, 16.0):
        began = time.monotonic()
        ended = run(f"echo begun; {LEAVERS[kind].format(note=note)}", seconds=seconds)
        assert ended.status is None
        assert time.monotonic() - began < seconds + 15
        if (tmp_path / "pid").exists():
            break
    assert ended.output == b"begun\n"
    assert not alive(noted(tmp_path / "pid"))


def test_what_a_failed_program_left_ends_and_what_a_good_one_left_stays(tmp_path: Path) -> None:
    for status in (3, 0):
        pid = tmp_path / f"pid-{status}"
        leave = f"(setsid sh -c '{NOTE.format(pid)}' &); while ! test -e {pid}; do sleep 0.05; done"
        ended = run(f"{leave}; echo done; exit {status}")
        assert (ended.status, ended.output) == (status, b"done\n")
        assert alive(noted(pid)) == (status == 0)
        if not status:
            os.kill(noted(pid), 9)
            assert gone(noted(pid))


def test_all_that_a_program_started_ends_when_this_process_is_killed(tmp_path: Path) -> None:
    script = f"(setsid sh -c '{NOTE.format(tmp_path / 'pid')}' &); sleep 60"
    code = (
        "import os; from requant.machine.programs import run_program; "
        f"run_program(['sh', '-c', {script!r}], dict(os.environ), 60, grace=0.3)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    orphan = noted(tmp_path / "pid")
    parent.kill()
    parent.wait()
    assert gone(orphan)


def test_a_flood_is_counted_and_its_end_kept() -> None:
    size = 64 << 20
    code = (
        f"import sys\nfor _ in range({size >> 20}): sys.stdout.write('x' * (1 << 20))\nprint('end')"
    )
    tracemalloc.start()
    try:
        ended = run_program([sys.executable, "-c", code], dict(os.environ), 60)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ended.status == 0
    assert ended.output.endswith(b"xxend\n")
    assert len(ended.output) == KEPT_BYTES
    assert ended.dropped == size + len("end\n") - KEPT_BYTES
    assert peak < 4 << 20


def test_a_program_that_is_killed_or_cannot_start_has_a_status(tmp_path: Path) -> None:
    assert run("kill -KILL $$").status == 128 + 9
    (tmp_path / "no program").write_bytes(b"\x7fnothing")
    (tmp_path / "no program").chmod(0o755)
    ended = run_program([str(tmp_path / "no program")], dict(os.environ), 5)
    assert ended.status == 126
    assert ended.output.endswith(b"no program cannot be started: Exec format error\n")


def test_a_program_finds_the_signals_as_a_shell_gives_them() -> None:
    # Python ignores SIGPIPE: with that `yes` would never end.
    assert run("yes | head -1; trap").output == b"y\n"
