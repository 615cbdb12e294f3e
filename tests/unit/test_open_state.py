"""Whatever command opens a state folder closes it to other users, and says that it was open."""

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from requant.cli import app
from requant.store import StageRecord, Store
from requant.store.privacy import OTHERS
from tests.support.users import as_nobody, only_root


def open_up(store: Store) -> None:
    for path in (store.root, *store.root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def open_paths(store: Store) -> list[Path]:
    return [path for path in (store.root, *store.root.rglob("*")) if path.stat().st_mode & OTHERS]


WORDS = {
    "verify": [],
    "gc": ["--dry-run"],
    "explain": ["merge_fp16"],
    "down": [],
    "lineage": ["DIGEST"],
    "gate": ["DIGEST", "DIGEST"],
}


@pytest.mark.parametrize("command", WORDS)
def test_a_command_closes_an_open_state_folder_and_says_so(
    store: Store, night: dict[str, StageRecord], command: str
) -> None:
    digest = night["merge_fp16"].digest[:12]
    words = [digest if word == "DIGEST" else word for word in WORDS[command]]
    open_up(store)
    result = CliRunner().invoke(app, [command, *words, "--state", str(store.root)])
    assert f"warning: state: {store.root} was open to other users" in result.stderr
    assert open_paths(store) == []
    again = CliRunner().invoke(app, [command, *words, "--state", str(store.root)])
    assert "was open" not in again.stderr


@only_root
def test_who_does_not_own_a_state_folder_reads_it_and_is_told(
    store: Store, night: dict[str, StageRecord]
) -> None:
    open_up(store)
    with as_nobody(store.root):
        result = CliRunner().invoke(app, ["verify", "--state", str(store.root)])
    assert f"state: {store.root} belongs to user root" in result.stderr
    assert result.stdout.startswith(f"{len(night)} of {len(night)} artifacts are right")


def test_one_on_a_disk_that_is_read_only_is_read_and_said_to_stay_open(
    store: Store, night: dict[str, StageRecord], tmp_path: Path
) -> None:
    open_up(store)
    there = tmp_path / "read-only"
    there.mkdir()
    mounts = (["--bind", store.root, there], ["-o", "remount,ro,bind", there])
    if any(
        subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode
        for words in mounts
    ):
        subprocess.run(["umount", there], capture_output=True, check=False)
        pytest.skip("needs the right to mount a folder read-only")
    try:
        result = CliRunner().invoke(app, ["verify", "--state", str(there)])
    finally:
        subprocess.run(["umount", there], check=True)
    assert f"in {there} are open to other users and cannot be closed, the disk is" in result.stderr
    assert "was open" not in result.stderr
    assert result.exit_code == 0
    assert open_paths(store) != []
