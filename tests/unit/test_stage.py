"""A stage is done once, published whole or not at all, and its key holds what decides the bytes."""

import errno
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from requant.config import STAGE_NAMES
from requant.config.evaluation import Evaluate
from requant.config.training import Optimisation
from requant.errors import ArtifactError, TerminalError, TransientError, is_transient
from requant.execution.key import stage_key
from requant.execution.perform import perform
from requant.execution.stage import Metrics, Stage, StageContext
from requant.stages import STAGES
from requant.store import Store, locks, publish, read_record
from requant.store.attempts import in_progress
from requant.store.gc import collect, find_garbage
from tests.support.shout import STAGE, Shout, Telling, child, executions, run, shout, wait_until


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "state").mkdir()
    return Store(tmp_path / "state")


def test_the_second_run_executes_nothing(store: Store) -> None:
    first = run(store, Shout(word="hey", times=3))
    assert run(store, Shout(word="hey", times=3)) == first
    assert executions(store) == 1
    assert first.metrics == {"letters": 3.0}
    assert first.curves == {"loudness": ((0, 0.0), (1, 2.0), (2, 4.0))}
    assert not store.work_path(first.key).exists()


def test_a_curve_of_a_long_training_is_thinned_and_keeps_its_ends(store: Store) -> None:
    def long(section: Shout, context: StageContext) -> Metrics:
        (context.out / "weights").write_text("")
        for step in range(50_001):
            context.reporter.metrics({"loss": step / 2}, step)
        return {}

    stage, section = replace(STAGE, execute=long), Shout(word="hey")
    key = stage_key(stage, section, {}, seed=0)
    given: dict[str, Any] = {"seed": 0, "device": "cpu", "reporter": Telling()}
    curve = perform(store, stage, key, section, {}, **given).curves["loss"]
    assert 10_000 < len(curve) <= 20_001
    assert (curve[0], curve[-1]) == ((0, 0.0), (50_000, 25_000.0))


def test_force_executes_and_equal_bytes_keep_the_digest(store: Store) -> None:
    first = run(store, Shout(word="hey"))
    assert run(store, Shout(word="hey"), force=True).digest == first.digest
    assert executions(store) == 2


@pytest.mark.parametrize("harm", ["delete", "flip"])
def test_a_harmed_artifact_is_made_again(store: Store, harm: str) -> None:
    record = run(store, Shout(word="hey"))
    file = store.object_path(record.digest) / "0.txt"
    file.unlink() if harm == "delete" else file.write_text("HEX")
    assert run(store, Shout(word="hey")).digest == record.digest
    assert executions(store) == 2
    assert file.read_text() == "HEY"


def test_a_failure_publishes_nothing_and_keeps_the_scratch(store: Store) -> None:
    with pytest.raises(TransientError, match="server is away"):
        run(store, Shout(word="fail"))
    key = stage_key(STAGE, Shout(word="fail"), {}, seed=0).digest
    assert not store.objects.exists()
    assert list(store.tmp.iterdir()) == []
    assert read_record(store, key) is None
    assert (store.work_path(key) / "started").exists()


def test_sigkill_leaves_no_half_artifact(store: Store) -> None:
    process = multiprocessing.get_context("forkserver").Process(
        target=run, args=(store, Shout(word="die"))
    )
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert not store.objects.exists()
    assert not store.actions.exists()


def test_two_processes_that_race_work_once(store: Store) -> None:
    context = multiprocessing.get_context("forkserver")
    racers = [context.Process(target=run, args=(store, Shout(word="slow"))) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(20)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert executions(store) == 1


def test_a_full_disk_publishes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TerminalError, match=r"the disk of .* is full .* Free space"):
        run(store, Shout(word="hey"))
    monkeypatch.undo()
    assert not store.objects.exists() or not list(store.objects.glob("*/*"))
    assert run(store, Shout(word="hey")).metrics == {"letters": 3.0}


def test_the_key_names_what_decides_the_bytes_and_nothing_else(store: Store) -> None:
    folder = store.tmp / "in"
    folder.mkdir(parents=True)
    (folder / "x").write_text("x")
    ref = publish(store, "dataset", folder)
    key = stage_key(STAGE, Shout(word="hey"), {"data": ref}, seed=0)
    assert set(key.fields) == {"stage", "version", "config", "inputs", "libraries", "seed"}
    assert key.fields["inputs"] == {"data": ref.digest}
    assert key.digest == stage_key(STAGE, Shout(word="hey"), {"data": ref}, seed=0).digest
    others = [
        stage_key(STAGE, Shout(word="ho"), {"data": ref}, seed=0),
        stage_key(STAGE, Shout(word="hey"), {"text": ref}, seed=0),
        stage_key(STAGE, Shout(word="hey"), {"data": ref}, seed=1),
        stage_key(
            Stage("shout", 2, "dataset", ("pydantic",), shout), Shout(word="hey"), {}, seed=0
        ),
    ]
    assert len({key.digest, *(other.digest for other in others)}) == 5


def test_fields_that_do_not_change_the_bytes_are_not_in_the_key() -> None:
    some, more = ({"max_steps": 9, "checkpoint_steps": steps} for steps in (1, 2))
    assert Optimisation(**some).key_fields() == Optimisation(**more).key_fields()
    assert Evaluate(limit=1).key_fields() != Evaluate(limit=2).key_fields()


def test_what_a_running_stage_works_in_is_not_garbage(store: Store) -> None:
    crashed = store.draft_path("0" * 64)
    crashed.mkdir(parents=True)
    run(store, Shout(word="long"))
    forced = child(store, "long", force=True)
    key = stage_key(STAGE, Shout(word="long"), {}, seed=0).digest
    wait_until(lambda: in_progress(store, key) and list(store.tmp.glob(f"{key}-*")))
    said: list[str] = []
    planned = find_garbage(store)
    assert planned.folders == (crashed,)
    (user,) = planned.in_use
    assert re.fullmatch(rf"shout is running since .* \(process {forced.pid} on .*\)", user)
    with pytest.raises(TransientError, match=r"is used by shout is running since .* nothing was"):
        collect(store)
    # Who waits is told for whom.
    assert collect(store, timeout=20, say=said.append).folders == (crashed,)
    assert all("nobody uses" in line and "shout is running" in line for line in said)
    forced.join(20)
    assert forced.exitcode == 0


def test_who_waits_for_a_stage_is_told_for_whom(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FIRST_WORD_SECONDS", 0.2)
    other = child(store, "long")
    key = stage_key(STAGE, Shout(word="long"), {}, seed=0)
    wait_until(lambda: in_progress(store, key.digest))
    reporter = Telling()
    record = perform(
        store, STAGE, key, Shout(word="long"), {}, seed=0, device="cpu", reporter=reporter
    )
    other.join(20)
    assert read_record(store, key.digest) == record
    assert executions(store) == 1
    assert re.fullmatch(
        rf"waiting since 0 s for shout of tiny \(process {other.pid} on .*, since .*\), "
        rf"which holds {store.stage_lock(key.digest)}",
        reporter.lines[0],
    )
    # 0.2, 0.4, 0.8: a wait of three seconds is told a few times, not sixty.
    assert 1 <= len(reporter.lines) <= 4


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TransientError("x"), True),
        (ConnectionResetError(), True),
        (OSError(errno.EIO, "I/O"), True),
        (TerminalError("x"), False),
        (ArtifactError("x"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("x"), False),
    ],
)
def test_only_what_may_pass_by_itself_is_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_every_stage_of_the_configuration_is_in_the_table_of_stages() -> None:
    assert set(STAGES) == set(STAGE_NAMES)
