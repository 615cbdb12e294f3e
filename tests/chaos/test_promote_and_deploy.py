"""A kill and a full disk in promote and in deploy, and kills at first starts, always the same."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import disk, services, starts
from tests.chaos.services import DEPLOY, PROMOTE, Line
from tests.chaos.strikes import Phase

PHASES = pytest.mark.parametrize("phase", [PROMOTE, DEPLOY], ids=lambda phase: phase.name)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("line")
    with services.prefect(folder) as server:
        if not disk.mountable():
            yield services.line(folder, server)
            return
        with disk.small_disk(folder / "now"):
            yield services.line(folder, server)


@PHASES
def test_after_a_kill_the_same_command_promotes_and_deploys_once(line: Line, phase: Phase) -> None:
    (strike,) = services.kills_in(line, phase, 1, random.Random(phase.name).random)
    assert strike.before


@PHASES
@pytest.mark.skipif(not disk.mountable(), reason="needs the right to mount a small disk")
def test_a_full_disk_promotes_nothing_by_half(line: Line, phase: Phase) -> None:
    (strike,) = disk.full_in_service(line, phase, 1, random.Random(phase.name).random)
    assert strike.before


def test_a_kill_at_the_first_start_harms_nothing(tmp_path: Path) -> None:
    # Prefect's takes half a minute: `make chaos` plays it.
    name = "mlflow start"
    (strike,) = starts.kills_at_start(tmp_path, name, 1, random.Random(name).random)
    assert strike.fault == name
