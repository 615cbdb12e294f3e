"""Content of artifacts is reached through the store, which says what it knows of what it lacks."""

from pathlib import Path

import pytest

from requant.errors import ArtifactError
from requant.store import Store, holds, materialise, publish, read_file


def test_what_is_there_is_read_and_what_is_not_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "rows.jsonl").write_bytes(b"{}\n")
    digest = publish(store, "dataset", draft).digest

    assert holds(store, digest)
    assert (materialise(store, digest) / "rows.jsonl").read_bytes() == b"{}\n"
    assert read_file(store, digest, "rows.jsonl") == b"{}\n"
    with pytest.raises(ArtifactError, match=rf"artifact {digest[:12]}: has no file scores.json"):
        read_file(store, digest, "scores.json")
    other = "f" * 64
    assert not holds(store, other)
    with pytest.raises(ArtifactError, match="has no record of artifact ffffffffffff"):
        materialise(store, other)
