"""The weekly flow deletes what nothing needs, and fails with the names of what is harmed."""

import stat
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


def test_a_record_that_cannot_be_believed_keeps_all_and_is_said_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "state")
    old = make_night(store, "first")["requantize_gptq"]
    make_night(store, "second")
    store.record_path(old.key).write_text("{}")
    store.root.chmod(0o755)
    with pytest.raises(ArtifactError) as failed:
        maintenance(store.root, keep=1)
    said, reason = str(failed.value).splitlines()
    assert said.startswith("1 records, pins or heads of lines cannot be believed, and nobody knows")
    assert reason.startswith(f"{store.record_path(old.key)}: has no seal")
    assert "does it again and writes it anew; else put it back from a copy, or remove it" in reason
    assert store.object_path(old.digest).exists()
    assert f"state: {store.root} was open to other users" in caplog.text
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    store.record_path(old.key).unlink()
    maintenance(store.root, keep=1)
    assert not store.object_path(old.digest).exists()
