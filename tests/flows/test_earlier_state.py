"""A state folder and an MLflow database that an earlier requant made go on to be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from requant.config import STAGE_NAMES
from requant.store import Store
from requant.store.records import read_records
from tests.support.chain import MICRO
from tests.support.commands import requant, states

ROOT = Path(__file__).parents[2]
EARLIER = "001fbdf9"
"""The last commit before the rooms were rearranged.

Whoever raises a `Stage.version` expects that stage, and those after it, to run here again; whoever
changes what is kept in a store makes EARLIER the commit before, and finds out whether it is read.
"""


@pytest.fixture
def earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder in which the code of `EARLIER` has run a night."""
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "earlier"
    code.mkdir()
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", EARLIER, "src", "tasks", "flows"],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(f"{EARLIER} is not in this clone's history: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x"], input=archive.stdout, cwd=code, check=True)
    (tmp_path / "tiny.yaml").write_text(MICRO)
    done = subprocess.run(
        [sys.executable, "-c", "from requant.cli import app; app()", "run", "tiny.yaml"],
        env={**os.environ, "PYTHONPATH": f"{code / 'src'}:{code}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(done.stdout) == dict.fromkeys(STAGE_NAMES, "done"), done.stdout
    return tmp_path


def test_every_stage_of_an_earlier_night_is_a_hit(earlier_state: Path) -> None:
    before = read_records(Store(earlier_state / "state"))

    output = requant("run", "tiny.yaml")

    assert states(output) == dict.fromkeys(STAGE_NAMES, "cached"), output
    assert read_records(Store(earlier_state / "state")) == before
    assert "nothing is wrong" in requant("verify", "--state", "state")
