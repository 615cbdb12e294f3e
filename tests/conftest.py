"""What holds for every test."""

from pathlib import Path

import pytest

from requant.machine.collector import set_aside
from tests.support.shared import Shared, shared_root

LONGEST_FIRST = ("chaos", "e2e", "flows", "stages", "unit")
"""Folders by how long a file of theirs takes: a long one begun last leaves other cores idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.relative_to(root).parts[0]))


@pytest.fixture(autouse=True)
def small_garbage() -> None:
    """Let a collection of one test not look through what others have imported."""
    set_aside()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    root = shared_root(tmp_path_factory.getbasetemp())
    root.mkdir(exist_ok=True)
    return Shared(root)
