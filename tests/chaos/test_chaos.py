"""A few kills and full disks in each place, always the same; `make chaos N=...` plays more."""

from collections.abc import Iterator

import pytest

from tests.chaos import disk, services, stages
from tests.chaos.services import Line
from tests.chaos.stages import Reference

SEED = 11


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("stages")
    if not disk.mountable():
        yield stages.undisturbed(folder)
        return
    with disk.small_disk(folder / "now"):
        yield stages.undisturbed(folder)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("line")
    with services.prefect(folder) as server:
        if not disk.mountable():
            yield services.line(folder, server)
            return
        with disk.small_disk(folder / "now"):
            yield services.line(folder, server)
