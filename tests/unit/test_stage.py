"""A stage is done once, published whole or not at all, and its key holds what decides the bytes."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from requant.config.evaluation import Evaluate
from requant.config.section import Section
from requant.config.training import Optimisation
from requant.errors import ArtifactError, TerminalError, TransientError, is_transient
from requant.execution.key import StageKey, stage_key
from requant.execution.perform import perform
from requant.execution.plan import explain_last_run, key_difference, plan_stage
from requant.execution.stage import Metrics, Stage, StageContext
from requant.store import Store, artifact_of, check_sizes, locks, publish, read_record, verify
from requant.store.attempts import in_progress, read_attempt
from requant.store.gc import collect, find_garbage


class Silent:
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...
    def message(self, text: str) -> None: ...


class Telling(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


class Shout(Section):
    word: str
    times: int = 1


def shout(section: Shout, context: StageContext) -> Metrics:
    (context.work / "started").touch()
    with (context.work.parent.parent / "executions").open("a") as file:
        file.write(f"{section.word}\n")
    for time_ in range(section.times):
        (context.out / f"{time_}.txt").write_text(section.word.upper())
        context.reporter.metrics({"loudness": time_ * 2.0}, time_)
    if section.word == "slow":
        time.sleep(1)
    if section.word == "long":
        time.sleep(3)
    if section.word == "fail":
        raise TransientError("the server is away")
    if section.word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"letters": float(len(section.word))}


STAGE = Stage("shout", 1, "dataset", ("pydantic",), shout)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "state").mkdir()
    return Store(tmp_path / "state")


def run(store: Store, section: Shout, force: bool = False, line: str = "tiny"):
    return perform(
        store,
        STAGE,
        stage_key(STAGE, section, {}, seed=0),
        section,
        {},
        seed=0,
        device="cpu",
        reporter=Silent(),
        force=force,
        labels={"pipeline": line},
    )


def child(store: Store, word: str, force: bool = False) -> ForkServerProcess:
    """Perform the stage in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=run, args=(store, Shout(word=word), force))
    process.start()
    return process


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def executions(store: Store) -> int:
    path = store.root / "executions"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_the_second_run_executes_nothing(store: Store) -> None:
    first = run(store, Shout(word="hey", times=3))
    assert run(store, Shout(word="hey", times=3)) == first
    assert executions(store) == 1
    assert first.metrics == {"letters": 3.0}
    assert first.curves == {"loudness": ((0, 0.0), (1, 2.0), (2, 4.0))}
    assert not store.work_path(first.key).exists()


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


def test_key_difference_names_the_field() -> None:
    before = StageKey({"config": {"rank": 8, "alpha": 1.0}, "inputs": {"data": "a" * 64}})
    after = StageKey({"config": {"rank": 16}, "inputs": {"data": "b" * 64}})
    assert [str(item) for item in key_difference(before.fields, after.fields)] == [
        "config.alpha: 1.0 -> absent",
        "config.rank: 8 -> 16",
        f"inputs.data: {'a' * 12} -> {'b' * 12}",
    ]


def test_the_plan_says_why(store: Store) -> None:
    def plan(section: Shout, **inputs):
        return plan_stage(store, STAGE, section, inputs, seed=0, line="tiny")

    run(store, Shout(word="first"), line="other")
    assert (plan(Shout(word="hey")).state, plan(Shout(word="hey")).reason) == ("run", "never ran")
    record = run(store, Shout(word="hey"))
    run(store, Shout(word="second"), line="other")
    assert plan(Shout(word="hey")).state == "cached"
    changed = plan(Shout(word="ho"))
    assert (changed.state, changed.reason) == ("run", "config.word: hey -> ho")
    waiting = plan(Shout(word="hey"), data=changed)
    assert (waiting.state, waiting.reason) == ("waits", "for shout")
    (store.object_path(record.digest) / "0.txt").write_text("HEX")
    assert "0.txt: was altered" in plan(Shout(word="hey")).reason


def test_what_failed_is_told_until_it_ends_well(store: Store) -> None:
    def reason(word: str) -> str:
        plan = plan_stage(store, STAGE, Shout(word=word), {}, seed=0, line="tiny")
        assert plan.state == "run"
        return plan.reason

    with pytest.raises(TransientError):
        run(store, Shout(word="fail"))
    assert re.fullmatch(r"failed \d{4}-.* UTC: the server is away", reason("fail"))
    assert re.fullmatch(
        "never ended well; with another key it failed .*: the server is away", reason("hey")
    )
    with pytest.raises(LookupError, match=r"last attempt failed .*: the server is away"):
        explain_last_run(store, "shout")
    killed = child(store, "die")
    killed.join(20)
    assert re.fullmatch(
        rf"began .* UTC and never ended \(process {killed.pid} on .*\): killed, or its .* died",
        reason("die"),
    )
    key = stage_key(STAGE, Shout(word="hey"), {}, seed=0).digest
    run(store, Shout(word="hey"))
    assert read_attempt(store, key) is None
    assert reason("ho") == "config.word: hey -> ho"


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


@pytest.mark.parametrize("where", ["here", "copied", "never"])
def test_what_is_deleted_and_what_is_elsewhere_are_told_apart(store: Store, where: str) -> None:
    record = run(store, Shout(word="hey"))
    ref = artifact_of(store, record)
    other = Store(store.root.with_name("other"))
    if where == "here":
        shutil.rmtree(store.object_path(record.digest))
        other = store
    if where == "copied":
        shutil.copytree(store.actions, other.actions)
    texts = {
        "here": f"artifact {ref.short} of shout was deleted since it was made here",
        "copied": f"of shout was made in {store.root} on {socket.gethostname()}; "
        f"this state folder ({other.root} on ",
        "never": f") has no record of artifact {ref.short}: it was made in another one",
    }
    for look in (verify, check_sizes):
        with pytest.raises(ArtifactError, match=re.escape(texts[where])):
            look(other, ref)


def test_explain_needs_a_record(store: Store) -> None:
    with pytest.raises(LookupError, match="shout: has no record"):
        explain_last_run(store, "shout")
    run(store, Shout(word="hey"))
    last, before = explain_last_run(store, "shout")
    assert before is None
    assert artifact_of(store, last).digest == last.digest


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
