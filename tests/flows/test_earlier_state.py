"""A state folder and an MLflow database that an earlier requant made go on to be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from requant.config.loading import load_config
from requant.store import Store, all_records
from tests.support.chain import MICRO
from tests.support.commands import requant, states
from tests.support.stages import all_stages

ROOT = Path(__file__).parents[2]
EARLIER = "001fbdf46d6f199e849f7097db48ce966d6eb99d"
"""The last commit before the rooms were rearranged.

Whoever raises a `Stage.version` expects that stage, and those after it, to run here again; whoever
changes what is kept in a store makes EARLIER the commit before, and finds out whether it is read.
What ran again so far is all but KEPT.

A new stage that `MICRO` leaves off needs nothing here, though EARLIER does not know it. One that is
on runs once, and so does what is downstream: then EARLIER becomes the commit that brings it.
"""

KEPT = {"prepare_base"}
"""prepare_data's choice task takes answers of like length now; quantize_base records more."""


def _history_is_cut() -> bool:
    asked = ["git", "-C", ROOT, "rev-parse", "--is-shallow-repository"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.returncode != 0 or answer.stdout.strip() == "true"


@pytest.fixture
def earlier_night(tmp_path: Path) -> Path:
    """The configuration of a night that the code of `EARLIER` has run."""
    code = tmp_path / "earlier"
    code.mkdir()
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", EARLIER, "src", "tasks", "flows"],
        capture_output=True,
        check=False,
    )
    if archive.returncode and _history_is_cut():
        pytest.skip(f"this copy's history does not reach back to {EARLIER[:7]}")
    assert archive.returncode == 0, archive.stderr.decode()
    subprocess.run(["tar", "-x"], input=archive.stdout, cwd=code, check=True)
    config = tmp_path / "micro.yaml"
    config.write_text(f"{MICRO}state: {tmp_path / 'state'}\n")
    done = subprocess.run(
        [sys.executable, "-c", "from requant.cli import app; app()", "run", config],
        cwd=code,
        env={**os.environ, "PYTHONPATH": f"{code / 'src'}:{code}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(done.stdout).values()) == {"done"}, done.stdout
    return config


def test_an_earlier_nights_stages_are_hits_where_they_are_as_they_were(earlier_night: Path) -> None:
    store = Store(earlier_night.parent / "state")
    before = all_records(store)

    output = requant("run", earlier_night)

    expected = all_stages("cached", load_config(earlier_night))
    expected |= {
        stage: "done" for stage, state in expected.items() if state != "off" and stage not in KEPT
    }
    assert states(output) == expected, output
    after = all_records(store)
    assert [record for record in after if record in before] == before
    assert len(after) == len(before) + sum(state == "done" for state in expected.values())
    artifacts = len({record.digest for record in after})
    assert f"{artifacts} of {artifacts} artifacts are right" in requant(
        "verify", "--state", store.root
    )
