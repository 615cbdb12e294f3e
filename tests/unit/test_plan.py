"""What would run and why, and where what is missing went."""

import re
import shutil
import socket
from pathlib import Path

import pytest

from requant.errors import ArtifactError, TransientError
from requant.execution.key import StageKey, stage_key
from requant.execution.plan import explain_last_run, key_difference, plan_stage
from requant.store import Store, artifact_of, check_sizes, verify
from requant.store.attempts import read_attempt
from tests.support.shout import STAGE, Shout, child, run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "state").mkdir()
    return Store(tmp_path / "state")


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
