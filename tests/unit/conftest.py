"""A store, and in it a made-up night."""

from pathlib import Path

import pytest

from requant.store import StageRecord, Store
from tests.support.nights import make_night


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


@pytest.fixture
def night(store: Store) -> dict[str, StageRecord]:
    return make_night(store)
