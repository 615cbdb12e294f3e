"""A kill and a full disk in each stage, always the same ones; `make chaos N=...` plays more."""

import random
from collections.abc import Iterator

import pytest

from tests.chaos import disk, stages
from tests.chaos.stages import STAGES, Reference


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("night")
    if not disk.mountable():
        yield stages.undisturbed(folder)
        return
    with disk.small_disk(folder / "now"):
        yield stages.undisturbed(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_after_a_kill_a_plain_run_ends_as_if_nothing_had_been(
    reference: Reference, stage: str
) -> None:
    (strike,) = stages.kills_in_stage(reference, stage, 1, random.Random(stage).random)
    assert strike.before


@pytest.mark.skipif(not disk.mountable(), reason="needs the right to mount a small disk")
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_named_and_a_plain_run_ends_as_if_nothing_had_been(
    reference: Reference, stage: str
) -> None:
    (strike,) = disk.full_in_stage(reference, stage, 1, random.Random(stage).random)
    assert strike.before
