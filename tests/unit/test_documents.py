"""A document is believed at its own place, and as it was written."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from requant.errors import ArtifactError
from requant.store import Store, all_records, read_record, verified_record
from requant.store.documents import DOCUMENT, read_sealed, seal_earlier, write_sealed
from requant.store.health import examine
from requant.store.pins import holder, pin
from requant.store.records import StageRecord, last_used


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    document = json.loads(path.read_bytes())
    change(document["content"])
    path.write_text(json.dumps(document))


def repointed(store: Store, night: dict[str, StageRecord]) -> str:
    """A record that names another model of the same kind."""
    other = night["prepare_base"].digest
    edit(store.record_path(night["merge_fp16"].key), lambda record: record.update(digest=other))
    return "its seal does not match"


def swapped(store: Store, night: dict[str, StageRecord]) -> str:
    """The record of other work, whole, under this key."""
    shutil.copy(
        store.record_path(night["continue_train"].key), store.record_path(night["merge_fp16"].key)
    )
    return "stands in the place of another"


def unsealed(store: Store, night: dict[str, StageRecord]) -> str:
    path = store.record_path(night["merge_fp16"].key)
    path.write_text(json.dumps(json.loads(path.read_bytes())["content"]))
    return "has no seal"


def of_another_key(store: Store, night: dict[str, StageRecord]) -> str:
    """Sealed at its place by who can write a seal, but of other work than its name says."""
    path = store.record_path(night["merge_fp16"].key)
    other = night["continue_train"].model_copy(update={"key": night["merge_fp16"].key})
    write_sealed(store, path, other.model_dump(mode="json"))
    return "is the record of other work than its name says"


def linked(store: Store, night: dict[str, StageRecord]) -> str:
    path = store.record_path(night["merge_fp16"].key)
    elsewhere = path.rename(store.root / "elsewhere.json")
    path.symlink_to(elsewhere)
    return "is no plain file"


def a_folder(store: Store, night: dict[str, StageRecord]) -> str:
    path = store.record_path(night["merge_fp16"].key)
    path.unlink()
    path.mkdir()
    return "is no plain file"


def deep(store: Store, night: dict[str, StageRecord]) -> str:
    store.record_path(night["merge_fp16"].key).write_text("[" * 100_000)
    return "is not JSON"


def huge(store: Store, night: dict[str, StageRecord]) -> str:
    os.truncate(store.record_path(night["merge_fp16"].key), DOCUMENT.size + 1)
    return "more than anything of its kind"


def no_number(store: Store, night: dict[str, StageRecord]) -> str:
    edit(store.record_path(night["merge_fp16"].key), lambda record: record.update(seconds=1e999))
    return "holds what requant never writes"


@pytest.mark.parametrize(
    "harm",
    [
        repointed,
        swapped,
        unsealed,
        of_another_key,
        linked,
        a_folder,
        deep,
        huge,
        no_number,
    ],
)
def test_a_record_that_is_not_its_own_is_a_miss_with_the_reason(
    store: Store,
    night: dict[str, StageRecord],
    harm: Callable[[Store, dict[str, StageRecord]], str],
) -> None:
    key = night["merge_fp16"].key
    assert verified_record(store, key) == (night["merge_fp16"], "")
    says = harm(store, night)
    assert read_record(store, key) is None
    record, reason = verified_record(store, key)
    assert record is None
    assert says in reason
    assert str(store.record_path(key)) in reason
    assert key not in {item.key for item in all_records(store)}
    assert [says in problem for problem in examine(store, deep=True).problems] == [True]


def test_a_state_folder_that_was_moved_is_believed(
    store: Store, night: dict[str, StageRecord], tmp_path: Path
) -> None:
    there = Store(store.root.rename(tmp_path / "elsewhere"))
    assert verified_record(there, night["merge_fp16"].key)[0] == night["merge_fp16"]


def test_what_an_earlier_version_wrote_is_sealed_once(
    store: Store, night: dict[str, StageRecord]
) -> None:
    """Believed before, as it was then; from then on, nothing without a seal is."""
    pin(store, "line", "champion", night["merge_fp16"].digest)
    for record in night.values():
        path = store.record_path(record.key)
        path.write_text(json.dumps(json.loads(path.read_bytes())["content"]))
        os.utime(path, (1e9, 1e9))
    store.pin_path("line-champion").write_text(night["merge_fp16"].digest)
    store.sealed_mark.unlink()
    assert all_records(store) == sorted(night.values(), key=lambda item: item.started)

    seal_earlier(store)

    assert examine(store, deep=False).problems == ()
    assert holder(store, "line", "champion") == night["merge_fp16"].digest
    assert last_used(store, night["merge_fp16"]) == 1e9
    unsealed(store, night)
    assert read_record(store, night["merge_fp16"].key) is None
    seal_earlier(store)
    assert read_record(store, night["merge_fp16"].key) is None


def test_the_record_of_a_long_training_is_read(store: Store) -> None:
    path = store.record_path("a" * 64)
    curve = [[step, 1 / (step + 3)] for step in range(100_000)]
    write_sealed(store, path, {"curves": {"loss": curve, "learning_rate": curve, "norm": curve}})
    assert read_sealed(store, path)["curves"]["norm"] == curve


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" + b"[]," * 19_000_000 + b"1]", "more than anything of its kind"),
        (b"[" + b"[]," * 2_000_000 + b"1]", "is not JSON: has more than 1000000 entries"),
        (b'{"seal": 1, "seal": 2}', "is not JSON: 'seal' is given twice in one object"),
    ],
)
def test_a_document_that_would_fill_the_memory_is_not_parsed(
    store: Store, text: bytes, said: str
) -> None:
    path = store.record_path("a" * 64)
    write_sealed(store, path, {})
    path.write_bytes(text)
    started = time.process_time()
    with pytest.raises(ArtifactError, match=said):
        read_sealed(store, path)
    assert time.process_time() - started < 10


def test_what_is_written_is_read(store: Store) -> None:
    path = store.deployment_path("line")
    content = {"text": "naïve", "number": 1e-05, "list": [1, 2.0, None]}
    write_sealed(store, path, content)
    assert read_sealed(store, path) == content
    with pytest.raises(FileNotFoundError):
        read_sealed(store, store.deployment_path("other"))
