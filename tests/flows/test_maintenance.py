"""The weekly flow deletes what nothing needs, and fails with the names of what is harmed."""

from pathlib import Path

import pytest

from flows.maintenance import maintenance
from requant.errors import ArtifactError
from requant.store import Store
from requant.store.health import examine
from tests.support.nights import make_night


def test_it_collects_garbage_and_names_what_is_harmed(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    old = make_night(store, "first")["requantize_gptq"]
    last = make_night(store, "second")["requantize_gptq"]
    harmed = next(path for path in store.object_path(last.digest).rglob("*") if path.is_file())
    harmed.write_bytes(harmed.read_bytes()[::-1] + b"!")
    with pytest.raises(ArtifactError, match=str(harmed.name)):
        maintenance(store.root, keep=1)
    assert not store.object_path(old.digest).exists()
    assert len(examine(store, deep=True).harmed) == 1
