"""What a document that cannot be believed has named is kept, and a person is told the way out."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from requant.cli import app
from requant.gate import Look
from requant.store import StageRecord, Store, all_records, read_record, write_record
from requant.store.attempts import attempted
from requant.store.documents import write_sealed
from requant.store.gc import collect, find_garbage
from requant.store.health import examine
from requant.store.looks import add_look
from requant.store.pins import holder, pin
from requant.store.privacy import make_private
from requant.store.results import SERIALIZER, result_of, result_suffix
from tests.support.nights import make_night


@pytest.fixture(autouse=True)
def closed(store: Store) -> None:
    """Or each command would say that the folder was open."""
    make_private(store.root, "state")


def flip(path: Path) -> None:
    """Change one letter of a document's content."""
    path.write_text(path.read_text().replace("a", "b", 1))


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def a_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[1] / "elsewhere"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def renamed(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.bak"))


def gc(store: Store, *words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["gc", *words, "--state", str(store.root)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("harm", [flip, no_text, a_link, a_folder, renamed])
def test_what_an_unreadable_record_names_is_kept_until_it_is_mended_or_removed(
    store: Store, harm: Callable[[Path], None]
) -> None:
    old, new = make_night(store, "first"), make_night(store, "second")
    record = new["requantize_gptq"]
    path = store.record_path(record.key)
    # The data of the first night, whose record the second one's took.
    unnamed = find_garbage(store).folders
    harm(path)
    crashed = store.draft_path(record.key)
    crashed.mkdir(parents=True)
    for words in (["--keep", "1", "--dry-run"], ["--keep", "1"]):
        status, out, err = gc(store, *words)
        assert status == 1
        assert err.splitlines()[0].startswith(f"{path}"), err
        assert "the night that needs its work does it again and writes it anew; else put it" in err
        assert "1 records, pins or heads of lines cannot be believed, and nobody knows" in err
        assert "1 folders (0.0 MiB), 0 records" in out
        assert crashed.exists() == ("--dry-run" in words)
    assert {item.key for item in all_records(store)} | {record.key} == {
        item.key for item in (*old.values(), *new.values())
    }
    for item in (*old.values(), *new.values()):
        assert store.object_path(item.digest).exists()

    # The one way out: the night does the work again.
    bad = next(item for item in store.actions.glob("[!.]*") if not read_record(store, item.stem))
    shutil.rmtree(bad) if bad.is_dir() else bad.unlink()
    write_record(store, record)
    assert find_garbage(store).folders == unnamed
    # The other: who removes it is told before what goes.
    path.unlink()
    status, out, err = gc(store)
    assert (status, err) == (0, "")
    assert str(store.object_path(record.digest)) in out
    assert not store.object_path(record.digest).exists()


WAYS_OUT = {
    "champion": "`requant promote CONFIG --version N`, N being the version that serves, pins it",
    "previous": "`requant promote CONFIG --version N`, N being the version that serves, pins it",
    "anchor": "put it back from a copy, or remove the file, and `requant gc` may take what it kept",
    "stray": "it is the pin of nothing requant knows: remove the file, and `requant gc` may take",
}


@pytest.mark.parametrize("post", WAYS_OUT)
@pytest.mark.parametrize("harm", [flip, no_text, a_link, a_folder])
def test_a_pin_that_cannot_be_believed_keeps_all_and_names_its_way_out(
    store: Store, post: Any, harm: Callable[[Path], None]
) -> None:
    way_out = WAYS_OUT[post]
    pinned = make_night(store, "first")["merge_fp16"]
    make_night(store, "second")
    pin(store, "line", post, pinned.digest)
    path = store.pin_path(f"line-{post}")
    harm(path)
    records = len(all_records(store))
    status, out, err = gc(store, "--keep", "1")
    assert status == 1
    assert err.startswith(f"{path}: ")
    assert way_out in err
    assert "deleted 0 folders (0.0 MiB), 0 records" in out
    assert len(all_records(store)) == records
    result = CliRunner().invoke(app, ["verify", "--state", str(store.root)])
    assert result.exit_code == 1
    assert way_out in result.stderr
    assert f"{records} of {records + 1} documents can be believed" in result.stdout

    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    pin(store, "line", post, pinned.digest)
    status, out, err = gc(store, "--keep", "1")
    assert (status, err) == (0, "")
    assert len(all_records(store)) < records
    assert store.object_path(pinned.digest).exists()


def test_what_is_pinned_is_examined_without_its_record(
    store: Store, night: dict[str, StageRecord]
) -> None:
    """A forced stage may have taken the record of what serves for new bytes."""
    model = night["requantize_gptq"]
    pin(store, "line", "champion", model.digest)
    store.record_path(model.key).unlink()
    weights = store.object_path(model.digest) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    (problem,) = examine(store, deep=True).problems
    assert problem.startswith(f"{weights}: was altered")


def keep_result(store: Store, record: StageRecord) -> Path:
    """Write what Prefect keeps of a stage's task."""
    path = store.results_path() / f"{record.key}{result_suffix(store)}"
    path.parent.mkdir(exist_ok=True)
    result = result_of(store, record).model_dump_json()
    metadata = {"storage_key": str(path), "serializer": {"type": SERIALIZER}}
    path.write_text(json.dumps({"metadata": metadata, "result": result}))
    return path


def reading_a_pickle(path: Path, records: dict[str, StageRecord]) -> None:
    path.write_text(path.read_text().replace(SERIALIZER, "pickle"))


def of_another_artifact(path: Path, records: dict[str, StageRecord]) -> None:
    model, base = (records[name].digest for name in ("merge_fp16", "prepare_base"))
    path.write_text(path.read_text().replace(model, base))


def of_another_key(path: Path, records: dict[str, StageRecord]) -> None:
    path.write_text(path.read_text().replace("merge_fp16", "evaluate"))


def cut_short(path: Path, records: dict[str, StageRecord]) -> None:
    os.truncate(path, 20)


def a_pipe(path: Path, records: dict[str, StageRecord]) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "harm", [reading_a_pickle, of_another_artifact, of_another_key, cut_short, a_pipe]
)
def test_a_result_that_no_night_believes_is_named(
    store: Store,
    night: dict[str, StageRecord],
    harm: Callable[[Path, dict[str, StageRecord]], None],
) -> None:
    path = keep_result(store, night["merge_fp16"])
    assert examine(store, deep=True).problems == ()
    harm(path, night)
    for words in ([], ["--deep"]):
        result = CliRunner().invoke(app, ["verify", *words, "--state", str(store.root)])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"{path}: ")
        assert result.stderr.endswith("; remove it: no night believes it\n")
    path.unlink()
    assert examine(store, deep=True).problems == ()


def test_results_that_no_night_asks_for_are_no_problem(
    store: Store, night: dict[str, StageRecord], tmp_path: Path
) -> None:
    for stage in ("merge_fp16", "evaluate"):
        keep_result(store, night[stage])
    store.record_path(night["evaluate"].key).unlink()
    assert examine(store, deep=True).problems == ()
    moved = Store(store.root.rename(tmp_path / "elsewhere"))
    assert examine(moved, deep=True).problems == ()


def test_a_result_that_is_being_written_is_no_problem(
    store: Store, night: dict[str, StageRecord]
) -> None:
    path = keep_result(store, night["merge_fp16"])
    path.with_name(f".{path.name}.{'a' * 32}").write_text("{")
    health = examine(store, deep=True)
    assert (health.problems, health.documents) == ((), len(all_records(store)) + 1)


def test_notes_of_deployments_and_attempts_are_examined(
    store: Store, night: dict[str, StageRecord]
) -> None:
    deployment = store.deployment_path("line")
    write_sealed(store, deployment, {"version": 1, "digest": "a" * 64})
    key = night["merge_fp16"].key
    with pytest.raises(ZeroDivisionError), attempted(store, "merge_fp16", key, {}):
        raise ZeroDivisionError
    attempt = store.attempt_path(key)
    assert examine(store, deep=True).problems == ()
    attempt.rename(store.attempt_path("b" * 64))
    no_text(store.attempt_path("c" * 64))
    flip(deployment)
    first, other, unreadable = examine(store, deep=True).problems
    assert first.startswith(f"{deployment}: was altered")
    assert "`requant deploy CONFIG` deploys what serves again and writes it anew" in first
    assert other == f"{store.attempt_path('b' * 64)}: tells of other work than its name; remove it"
    assert unreadable == f"{store.attempt_path('c' * 64)}: tells of no attempt; remove it"


def test_a_ledger_of_the_gate_is_examined(store: Store) -> None:
    add_look(store, "micro", Look("c" * 64, "d" * 64, "e" * 64, "2026-11-27", 1e-4, "promote"))
    assert examine(store, deep=False).problems == ()
    flip(store.ledger_path("micro"))
    (problem,) = examine(store, deep=False).problems
    assert "ledgers/micro.json: is not as it was written" in problem
    assert "or delete it, which gives the year's chance out anew" in problem


def test_a_collection_goes_on_with_what_crashes_left(
    store: Store, night: dict[str, StageRecord]
) -> None:
    flip(store.record_path(night["merge_fp16"].key))
    scratch = store.work_path(night["evaluate"].key)
    scratch.mkdir(parents=True)
    garbage = collect(store, keep=1)
    assert garbage.folders == (scratch,)
    assert not scratch.exists()


def test_a_pin_that_is_not_there_is_nobodys(store: Store) -> None:
    assert holder(store, "line", "champion") is None
